"""SegmentedWriter: interrupted anywhere and resumed, against the same frames written at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from dubbing import segments
from dubbing.segments import SegmentedWriter, file_fingerprint
from tests.support.media import text_file, tone_wav
from tests.support.numbered_media import decoded, numbered, numbers, write_with
from utils.errors import UserError

NUM_FRAMES = 34
SIZE = (128, 96)
JOB = {"video": "speaker.mp4, 1234 bytes, 2026-11-23 06:00:00", "texture": "True"}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 10)


def run(output: Path, stop: int | None = None, num_frames: int = NUM_FRAMES, **options) -> int:
    """Write the missing frames, up to an exception before frame `stop`; returns how many were already there."""
    with SegmentedWriter(output, options.pop("job", JOB), *SIZE, 25, **options) as written:
        for index in range(written.num_done, num_frames):
            if index == stop:
                raise ZeroDivisionError
            written.write(numbered(index, SIZE))
        if stop is not None:
            raise ZeroDivisionError
    return written.num_done


def assert_same(found: Path, expected: Path, num_frames: int | None = None) -> None:
    """The same frames at the same times. (x264 is not deterministic for such small frames.)"""
    times = [[time for time, _ in decoded(path)][:num_frames] for path in (found, expected)]
    assert times[0] == times[1]
    frames = [list(read_frames(path))[:num_frames] for path in (found, expected)]
    for one, other in zip(*frames, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 0.5


def interrupt(output: Path, stop: int, **options) -> None:
    with pytest.raises(ZeroDivisionError):
        run(output, stop, **options)


def left(output: Path) -> list[str]:
    folder = Path(f"{output}.segments")
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv", "OUT.MP4"])
def test_written_at_once(tmp_path, name):
    tone, output = tone_wav(tmp_path / "tone.wav", 2), tmp_path / name
    assert run(output, audio_paths=[tone]) == 0
    assert numbers(read_frames(output)) == list(range(NUM_FRAMES))
    assert len(load_audio(output)) / 16000 == pytest.approx(NUM_FRAMES / 25, abs=0.065)
    assert set(tmp_path.iterdir()) == {tone, output}


@pytest.mark.parametrize("stop", [0, 3, 9, 10, 11, 29, 30, 31, 34])
def test_interrupted_and_resumed_is_the_same_file(tmp_path, stop):
    tone, whole, output = tone_wav(tmp_path / "tone.wav", 2), tmp_path / "whole.mp4", tmp_path / "out.mp4"
    run(whole, audio_paths=[tone])
    output.write_bytes(b"previous")
    interrupt(output, stop, audio_paths=[tone])
    assert output.read_bytes() == b"previous"
    assert left(output) == ([f"000{n}.mp4" for n in range(stop // 10)] + ["job.json"] if stop >= 10 else [])
    assert run(output, audio_paths=[tone]) == stop // 10 * 10
    assert_same(output, whole)
    assert set(tmp_path.iterdir()) == {tone, whole, output}


def test_interrupted_repeatedly(tmp_path):
    for stop in (5, 12, 13, 28, 20, 34):
        interrupt(tmp_path / "out.mp4", stop)
    run(tmp_path / "out.mp4")
    run(tmp_path / "whole.mp4")
    assert_same(tmp_path / "out.mp4", tmp_path / "whole.mp4")


@pytest.mark.parametrize("num_frames", [30, 34])
@pytest.mark.parametrize("step", ["concatenate_videos", "SegmentedWriter._remove_folder"])
def test_interrupted_after_the_last_frame(tmp_path, monkeypatch, num_frames, step):
    run(tmp_path / "whole.mp4", num_frames=num_frames)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"dubbing.segments.{step}", interrupted)
        run(tmp_path / "out.mp4", num_frames=num_frames)
    assert len(left(tmp_path / "out.mp4")) == 1 + -(-num_frames // 10)
    assert run(tmp_path / "out.mp4", num_frames=num_frames) == 30
    assert_same(tmp_path / "out.mp4", tmp_path / "whole.mp4")
    assert not left(tmp_path / "out.mp4")


KILLED = """
import sys, time
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests.support.numbered_media import numbered
from dubbing import segments
segments.SEGMENT_FRAMES = 10
with segments.SegmentedWriter(Path({output!r}), {job!r}, *{size!r}, 25) as written:
    for index in range(10_000):
        written.write(numbered(index % 256, {size!r}))
        time.sleep(0.005)
"""


def test_killed_and_resumed(tmp_path):
    output, root = tmp_path / "out.mp4", Path(__file__).resolve().parents[2]
    code = KILLED.format(root=str(root), output=str(output), job=JOB, size=SIZE)
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            deadline = time.monotonic() + 60
            while "0001.mp4" not in left(output) or not any(name.startswith(".") for name in left(output)):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert any(name.startswith(".") for name in left(output))  # of the killed writer
    num_frames = 10 * sum(name.startswith("0") for name in left(output)) + 7
    assert run(output, num_frames=num_frames) == num_frames - 7
    run(tmp_path / "whole.mp4", num_frames=num_frames)
    assert_same(output, tmp_path / "whole.mp4")
    assert set(tmp_path.iterdir()) == {output, tmp_path / "whole.mp4"}


def test_two_processes(tmp_path):
    output = tmp_path / "out.mp4"
    with SegmentedWriter(output, JOB, *SIZE, 25) as written:
        for index in range(NUM_FRAMES):
            if index == 25:
                for job in (JOB, {"video": "another.mp4"}):
                    with pytest.raises(UserError, match=r"out\.mp4\.segments: another process is writing to it"):
                        run(output, job=job)
            written.write(numbered(index, SIZE))
    run(tmp_path / "whole.mp4")
    assert_same(output, tmp_path / "whole.mp4")
    assert set(tmp_path.iterdir()) == {output, tmp_path / "whole.mp4"}


def test_segments_equal_a_video_writer(tmp_path):
    run(tmp_path / "out.mp4", num_frames=20)
    with VideoWriter(tmp_path / "alone.mp4", *SIZE) as writer:
        for index in range(10):
            writer.write(numbered(index, SIZE))
    assert_same(tmp_path / "out.mp4", tmp_path / "alone.mp4", 10)


# --- changed or damaged folders ----------------------------------------------------------------------


def test_another_job(tmp_path):
    output = tmp_path / "out.mp4"
    interrupt(output, 25)
    before = left(output)
    for change, words in [
        ({"job": JOB | {"texture": "False"}}, "texture was True and is False"),
        ({"job": JOB | {"face": "left"}}, "face was not given and is left"),
        ({"job": {"texture": "True"}}, "video was speaker.mp4, .* and is not given"),
        ({"crf": 20}, "crf was 16 and is 20"),
    ]:
        with pytest.raises(UserError, match=f"{output}.segments belongs to .*{words}.*delete the folder") as error:
            run(output, **change)
        assert error.value.parameter == "resume"
        assert "\n" not in str(error.value)
        assert left(output) == before
    assert run(output) == 20


def test_folder_with_other_files_is_not_touched(tmp_path):
    folder = tmp_path / "out.mp4.segments"
    folder.mkdir()
    notes = text_file(folder / "notes.txt")
    with pytest.raises(UserError, match=f"{folder}: holds files that are no segments .notes.txt"):
        run(tmp_path / "out.mp4")
    assert list(folder.iterdir()) == [notes]


def test_unreadable_job_file(tmp_path):
    output = tmp_path / "out.mp4"
    for text in ("{", "[]", "\xff", ""):
        interrupt(output, 15)
        (tmp_path / "out.mp4.segments/job.json").write_text(text, "latin-1")
        with pytest.raises(UserError, match=r"job\.json cannot be read"):
            run(output)
        (tmp_path / "out.mp4.segments/job.json").unlink()  # then the segments are of an unknown job
        assert run(output) == 0


def shorten(path: Path) -> None:
    write_with(path, 7)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [halve, text_file, empty, shorten, Path.unlink])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_incomplete_segments_are_written_again(tmp_path, caplog, harm, number):
    output, folder = tmp_path / "out.mp4", tmp_path / "out.mp4.segments"
    interrupt(output, 31)
    harm(folder / f"000{number}.mp4")
    (folder / ".0003.1234.partial.mp4").touch()
    assert run(output) == 10 * number
    assert numbers(read_frames(output)) == list(range(NUM_FRAMES))
    warned = f"{folder}/000{number}.mp4: cannot be read" in caplog.text
    assert warned == (harm not in (shorten, Path.unlink))


def test_unwritable_folders(tmp_path):
    (tmp_path / "out.mp4.segments").touch()
    for output in (tmp_path / "out.mp4", tmp_path / "absent" / "out.mp4", Path("/proc/out.mp4")):
        with pytest.raises(UserError, match=f"{output}.segments: cannot be written") as error:
            run(output)
        assert error.value.parameter == "output"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("at", [".0001", ".joined"])
def test_full_disk_keeps_complete_segments(tmp_path, at):
    output, folder = tmp_path / "out.mp4", tmp_path / "out.mp4.segments"
    with (
        pytest.raises(UserError, match=f"{at[1:]}.*the disk is full"),
        SegmentedWriter(output, JOB, *SIZE, 25) as written,
    ):
        (folder / f"{at}.{os.getpid()}.partial.mp4").symlink_to("/dev/full")
        for index in range(NUM_FRAMES):
            written.write(numbered(index, SIZE))
    assert left(output) == ["0000.mp4", *(["0001.mp4", "0002.mp4", "0003.mp4"] if "j" in at else []), "job.json"]
    run(output)
    assert numbers(read_frames(output)) == list(range(NUM_FRAMES))


def test_unreadable_audio_is_reported_before_anything_is_written(tmp_path):
    audio = text_file(tmp_path / "audio.wav")
    with pytest.raises(UserError, match=str(audio)):
        run(tmp_path / "out.mp4", audio_paths=[audio])
    assert list(tmp_path.iterdir()) == [audio]


def test_longest_name(tmp_path):
    output = tmp_path / ("口" * 83 + "yz.mp4")
    interrupt(output, 15)
    assert run(output) == 10
    assert list(tmp_path.iterdir()) == [output]


def test_symbolic_link_stays(tmp_path):
    (tmp_path / "store").mkdir()
    link, target = tmp_path / "out.mp4", tmp_path / "store" / "video.mp4"
    link.symlink_to(target)
    interrupt(link, 15)
    assert left(target) == ["0000.mp4", "job.json"]
    assert run(link) == 10
    assert link.is_symlink() and numbers(read_frames(target)) == list(range(NUM_FRAMES))
    assert list((tmp_path / "store").iterdir()) == [target]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(UserError, match=r"out\.mp4: cannot be written: the symbolic link points to itself"):
        run(link)


def test_no_frame(tmp_path):
    with pytest.raises(UserError, match=r"there is no frame"):
        run(tmp_path / "out.mp4", num_frames=0)
    assert list(tmp_path.iterdir()) == []


def test_file_fingerprint(tmp_path):
    path = tmp_path / "speaker.mp4"
    path.write_bytes(bytes(1234))
    os.utime(path, (1795413600, 1795413600.9))
    assert file_fingerprint(path) == "speaker.mp4, 1234 bytes, 2026-11-23 06:00:00"
    with pytest.raises(UserError, match=f"{tmp_path}/absent.mp4: cannot be read"):
        file_fingerprint(tmp_path / "absent.mp4")


def test_job_file(tmp_path):
    interrupt(tmp_path / "out.mp4", 12)
    job = json.loads((tmp_path / "out.mp4.segments/job.json").read_text())
    assert job.items() > JOB.items()
    assert (job["width"], job["height"], job["fps"]) == (str(SIZE[0]), str(SIZE[1]), "25")
