"""prepare: the files of a prepared dataset, continuing after an interruption, invalid videos, the command line."""

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from distributed import LocalCluster

from data_processing import clips, prepare
from data_processing.audio.features import extract_features
from data_processing.av_sync import AVOffset
from data_processing.clips import MIN_FRAMES, Settings
from data_processing.face.crop import FaceCrop
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from data_processing.sources import Source, find_sources
from tests.support.commands import run_command_line
from tests.support.media import (
    no_face_video,
    speech_like,
    talking_portrait,
    text_file,
    two_audio_tracks,
    video_without_audio,
)
from utils.errors import MediaError, OutputError, ParameterError, UserError, WeightsError
from utils.files import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("remembered_networks")]

NOWHERE = Path("nowhere")  # an output folder that contains none of the inputs
SETTINGS = Settings(mouth_size=64, landmarks="dlib", audio_features="whisper")


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_prepared_dataset(prepared_dataset, portrait_clip):
    lines = {line["person"]: line for line in read_jsonl(prepared_dataset / "manifest.jsonl")}
    assert {speaker: line["split"] for speaker, line in lines.items()} == {"Bob": "train", "Joe": "val"}
    assert read_jsonl(prepared_dataset / "rejected.jsonl") == []
    names = {"manifest.jsonl", "rejected.jsonl", "dataset.json", "prepare.lock"}
    for speaker, line in lines.items():
        assert Path(line["source"]) == prepared_dataset.parent / "videos" / f"{speaker.lower()}.mp4"
        assert (line["start_frame"], line["num_frames"], line["found"]) == (0, 40, 1.0)
        assert (line["audio_features"], line["audio_late_ms"]) == ("whisper", 0.0)
        names |= {f"clips/{line['id']}.mp4", f"clips/{line['id']}.npz"}
    # other tests of this process may have added what training adds
    found = {name for name in modification_times(prepared_dataset) if not name.startswith("packed/")}
    assert found == names

    line = lines["Bob"]
    clip = prepared_dataset / "clips" / f"{line['id']}.mp4"
    landmarks = find_landmarks(portrait_clip)
    waveform = load_audio(portrait_clip)
    with np.load(clip.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["landmarks"], landmarks.points)
        assert np.array_equal(arrays["features"], extract_features(waveform, "whisper", 40))
        assert arrays["found"].shape == (40,) and arrays["found"].all()
        radii = arrays["radii"]

    frames = np.array(list(read_frames(clip)))
    assert frames.shape == (40, 104, 80, 3)
    crops = [
        FaceCrop.from_landmarks(points, radius_px, 64).extract(frame)
        for points, radius_px, frame in zip(landmarks.points, radii, read_frames(portrait_clip), strict=True)
    ]
    assert np.abs(frames.astype(int) - crops).mean() < 2.5
    audio = load_audio(clip)
    assert abs(len(audio) / SAMPLE_RATE - 1.6) < 0.065
    lag = np.argmax(np.correlate(audio[:16000], waveform[800:15200], "valid")) - 800
    assert abs(lag) <= 16  # 1 ms


# --- continuing after an interruption -----------------------------------------------------------------------


def test_second_run_does_nothing(prepared_dataset, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(prepared_dataset, output)
    before = modification_times(output)
    sources = find_sources([prepared_dataset.parent / "videos"], NOWHERE, None)
    prepare.prepare(sources, output, SETTINGS, 10, jobs=1)
    assert "2 videos: 2 already prepared, 0 to do" in capsys.readouterr().out
    after = modification_times(output)
    assert {name for name in before if "clips" in name and before[name] != after[name]} == set()
    assert read_jsonl(output / "manifest.jsonl") == read_jsonl(prepared_dataset / "manifest.jsonl")


@pytest.mark.parametrize("cut_off", [False, True])
def test_video_missing_from_the_manifest_is_prepared_again(prepared_dataset, tmp_path, cut_off):
    """`cut_off`: half of its line had been written when the machine stopped."""
    output = tmp_path / "out"
    shutil.copytree(prepared_dataset, output)
    before = modification_times(output)
    first, second = (output / "manifest.jsonl").read_text().splitlines(keepends=True)
    (output / "manifest.jsonl").write_text(first + (second[: len(second) // 2] if cut_off else ""))
    prepare.prepare(find_sources([prepared_dataset.parent / "videos"], NOWHERE, None), output, SETTINGS, 10, jobs=1)
    assert read_jsonl(output / "manifest.jsonl") == [json.loads(first), json.loads(second)]
    after = modification_times(output)
    rewritten = {name for name in before if name.startswith("clips/") and after[name] != before[name]}
    assert rewritten == {f"clips/{json.loads(second)['id']}{suffix}" for suffix in (".mp4", ".npz")}


def test_other_settings_are_refused(prepared_dataset, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(prepared_dataset, output)
    other = Settings(mouth_size=128, landmarks="dlib", audio_features="whisper")
    with pytest.raises(ParameterError, match=r"out was prepared with .*64.*, expected .*128") as caught:
        prepare.prepare([], output, other, 10, jobs=1)
    assert caught.value.parameter == "output"


def test_clips_that_are_prepared_already_get_the_speakers_that_are_named_now(prepared_dataset, tmp_path, capsys):
    output, videos = tmp_path / "out", prepared_dataset.parent / "videos"
    shutil.copytree(prepared_dataset, output)
    before = read_jsonl(output / "manifest.jsonl")
    sources = [Source(videos / "bob.mp4", "Ann", 0), Source(videos / "joe.mp4", "joe", 0, is_named=False)]
    prepare.prepare(sources, output, SETTINGS, 10, jobs=1)
    assert "1 clips that were prepared before have another speaker now" in capsys.readouterr().out
    lines = read_jsonl(output / "manifest.jsonl")
    assert lines == [line | {"person": {"Bob": "Ann", "Joe": "Joe"}[line["person"]]} for line in before]


# --- invalid videos -----------------------------------------------------------------------------------------


def test_invalid_files_do_not_stop_the_others(tmp_path, capsys, caplog):
    videos = tmp_path / "videos"
    videos.mkdir()
    text_file(videos / "text.mp4")
    no_face_video(videos / "no_audio.mp4")
    gradient = no_face_video(tmp_path / "gradient.mp4")
    wav = tmp_path / "speech.wav"
    save_wav(wav, speech_like(0.4))
    with VideoWriter(videos / "no_face.mp4", 256, 256, audio_paths=[wav]) as writer:
        for frame in read_frames(gradient):
            writer.write(frame)
    talking_portrait(videos / "short.mp4", num_frames=MIN_FRAMES - 5)
    video_without_audio(videos / "silent.mp4", num_frames=5)
    two_audio_tracks(videos / "good.mkv")

    prepare.prepare(find_sources([videos], NOWHERE, None), tmp_path / "out", SETTINGS, 10, jobs=2)
    accepted = read_jsonl(tmp_path / "out" / "manifest.jsonl")
    assert [Path(line["source"]).name for line in accepted] == ["good.mkv"]
    reasons = {
        Path(line["source"]).name: line["reason"] for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")
    }
    assert set(reasons) == {"text.mp4", "no_audio.mp4", "no_face.mp4", "short.mp4", "silent.mp4"}
    assert reasons["text.mp4"].startswith("not a media file")
    assert "no audio track" in reasons["no_audio.mp4"] == reasons["silent.mp4"]
    assert "no face detected in 10 frames" in reasons["no_face.mp4"]
    assert reasons["short.mp4"] == "shot shorter than 20 frames"
    out = capsys.readouterr().out
    assert "train: 1 clips, 1 speakers" in out or "val: 1 clips, 1 speakers" in out
    assert "rejected: 5 videos" in out
    (record,) = caplog.records  # of a worker process
    assert record.getMessage() == f"{videos / 'good.mkv'}: using audio track 2 of 2"
    assert record.path == videos / "good.mkv"
    assert not list((tmp_path / "out").rglob(".*"))


def test_mismatched_audio_is_rejected(tmp_path, portrait_clip, monkeypatch):
    monkeypatch.setattr(clips, "measure_offset", lambda *args: AVOffset(0.0, 0.19))
    monkeypatch.setattr(clips, "MIN_SYNC_FRAMES", 40)
    settings = replace(SETTINGS, min_sync_confidence=0.2)
    with pytest.raises(ParameterError, match="none of 1 videos can be used: 1 × no A/V sync") as caught:
        prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", settings, 10, jobs=1)
    assert caught.value.parameter == "inputs"
    assert read_jsonl(tmp_path / "out" / "manifest.jsonl") == []
    (line,) = read_jsonl(tmp_path / "out" / "rejected.jsonl")
    assert line["reason"] == "no A/V sync within ±15 frames (confidence below 0.2)"


def test_error_not_due_to_the_video_is_printed_and_the_video_tried_again(
    tmp_path, portrait_clip, monkeypatch, capsys
):
    def fail(*args):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(clips, "find_landmarks", fail)
    with pytest.raises(ParameterError, match="none of 1 videos can be used: 1 × ZeroDivisionError: oh"):
        prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", SETTINGS, 10, jobs=1)
    out = capsys.readouterr().out
    assert out.count(f"{portrait_clip}: ") == 1 and "ZeroDivisionError: oh" in out
    assert read_jsonl(tmp_path / "out" / "rejected.jsonl") == []
    monkeypatch.undo()
    prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", SETTINGS, 10, jobs=1)
    assert [clip["person"] for clip in read_jsonl(tmp_path / "out" / "manifest.jsonl")] == ["Bob"]


def test_failed_videos_are_counted_and_the_exit_code_is_not_that_of_success(tmp_path, monkeypatch, capsys):
    for name in "abcd":
        text_file(tmp_path / f"{name}.mp4")

    def prepare_or_fail(source, *args):
        if source.path.stem == "a":
            return [{"source": str(source.path), "person": "a", "start_frame": 0, "num_frames": 40}], []
        if source.path.stem == "b":
            raise MediaError(source.path, "no audio track")
        raise MemoryError("out of memory")

    monkeypatch.setattr(prepare, "prepare_video", prepare_or_fail)
    monkeypatch.setattr(prepare, "extract_features", lambda *args: None)
    arguments = (tmp_path, "--output", tmp_path / "out", "--jobs", 1)
    assert run_main(*arguments) == 1
    out = capsys.readouterr().out
    assert "rejected: 1 videos" in out
    assert "failed: 2 videos (the same command tries them again)\n     2  MemoryError: out of memory\n" in out
    monkeypatch.setattr(prepare, "prepare_video", lambda *args: ([], ["too short"]))
    assert run_main(*arguments) == 0
    out = capsys.readouterr().out
    assert "4 videos: 2 already prepared, 2 to do" in out and "rejected: 3 videos" in out and "failed: " not in out


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [OutputError("clips/bob.mp4", "cannot be written: the disk is full"), FULL, WeightsError("no weights")],
    ids=["typed", "untyped", "weights"],
)
def test_full_disk_stops_and_rejects_nothing(tmp_path, portrait_clip, monkeypatch, error):
    """Faults that would recur with every video."""
    sources = [Source(Path(shutil.copy(portrait_clip, tmp_path / f"{k}.mp4")), "Bob", 0) for k in range(3)]
    done = []

    def fail(source, *args):
        done.append(source)
        raise error

    monkeypatch.setattr(prepare, "prepare_video", fail)
    with pytest.raises(UserError, match=r"the disk is full|no weights"):
        prepare.prepare(sources, tmp_path / "out", SETTINGS, 10, jobs=1)
    assert done == sources[:1]
    result = prepare._prepare_one(sources[0], tmp_path, SETTINGS)
    assert str(pickle.loads(pickle.dumps(result)).stop) == str(result.stop)  # as a worker process sends it
    assert read_jsonl(tmp_path / "out" / "rejected.jsonl") == read_jsonl(tmp_path / "out" / "manifest.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("name", ["manifest.jsonl", "rejected.jsonl"])
def test_full_disk_under_the_lists(tmp_path, portrait_clip, monkeypatch, capsys, name):
    lines = [{"source": "x", "person": "Bob", "num_frames": 40}] if name == "manifest.jsonl" else []
    monkeypatch.setattr(prepare, "prepare_video", lambda *args: (lines, []))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    monkeypatch.setattr(prepare, "_end_last_line", lambda path: path.touch())
    monkeypatch.setattr(prepare, "read_jsonl", lambda path: [])
    assert run_main(portrait_clip, "--output", tmp_path / "out", "--jobs", 1) == 2
    message = f"error: --output: {tmp_path}/out/{name}: cannot be written: the disk is full"
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_lines_are_appended_all_or_none(tmp_path):
    path = tmp_path / "list.jsonl"
    prepare._append(path, [{"a": 1}])
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OutputError, match="File too large"):
            prepare._append(path, [{"b": 2}] * 3)  # the first of which fits
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    prepare._append(path, [{"c": 3}])
    assert read_jsonl(path) == [{"a": 1}, {"c": 3}]


def test_all_videos_rejected_is_an_error(tmp_path, monkeypatch, capsys):
    for k in range(6):
        text_file(tmp_path / f"{k}.mp4")
    reasons = ["no audio track"] * 3 + ["too short", "no face", "no sync"]

    def reject(source, *args):
        raise MediaError(source.path, reasons[int(source.path.stem)])

    monkeypatch.setattr(prepare, "prepare_video", reject)
    for _ in range(2):  # the second run has nothing to do
        assert run_main(tmp_path, "--output", tmp_path / "out", "--jobs", 1) == 2
        message = "INPUT: none of 6 videos can be used: 3 × no audio track; 1 × too short; 1 × no face; …"
        assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert len(read_jsonl(tmp_path / "out" / "rejected.jsonl")) == 6


def test_missing_weights_reject_no_video(tmp_path, portrait_clip, monkeypatch):
    def missing(*args):
        raise WeightsError("whisper: cannot be downloaded")

    monkeypatch.setattr(prepare, "extract_features", missing)
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", SETTINGS, 10, jobs=1)
    assert read_jsonl(tmp_path / "out" / "rejected.jsonl") == []


# --- two processes in one folder ----------------------------------------------------------------------------


OTHER_PROCESS = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
"""


def test_second_process_in_a_folder_is_refused_until_the_first_is_killed(tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    (output / "clips").mkdir(parents=True)
    text_file(tmp_path / "a.mp4")
    monkeypatch.setattr(prepare, "extract_features", lambda *args: None)
    monkeypatch.setattr(prepare, "prepare_video", lambda *args: ([], ["too short"]))
    command = [sys.executable, "-c", OTHER_PROCESS, output / "prepare.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert run_main(tmp_path, "--output", output, "--jobs", 1) == 2
        message = f"error: --output: another process is preparing {output}; wait until it has ended, or choose"
        assert capsys.readouterr().err.startswith(message)
        assert not (output / "dataset.json").exists()
        process.kill()
    assert run_main(tmp_path, "--output", output, "--jobs", 1) == 2
    assert "none of 1 videos can be used: 1 × too short" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock")])
def test_file_system_without_locks(tmp_path, monkeypatch, error):
    def no_locks(*args, **kwargs):
        raise error

    monkeypatch.setattr(prepare.FileLock, "acquire", no_locks)
    with prepare._locked(tmp_path):
        (tmp_path / "dataset.json").touch()


# --- Dask ---------------------------------------------------------------------------------------------------


def test_dask_cluster(tmp_path, portrait_clip, capsys):
    """Two videos on a cluster of two worker processes give the same clips as in this process."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("bob.mp4", "joe.mp4"):
        shutil.copy(portrait_clip, videos / name)
    sources = find_sources([videos], NOWHERE, None)
    prepare.prepare(sources, tmp_path / "local", SETTINGS, 10, jobs=1)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        prepare.prepare(sources, tmp_path / "cluster", SETTINGS, 10, jobs=1, scheduler=cluster.scheduler_address)
        capsys.readouterr()
        found = prepare.with_identities(sources, tmp_path / "cluster", jobs=1, scheduler=cluster.scheduler_address)
    assert {source.speaker for source in found} == {found[0].speaker}
    assert "identities: 100%" in (errors := capsys.readouterr().err) and "2/2" in errors
    local, remote = (read_jsonl(tmp_path / name / "manifest.jsonl") for name in ("local", "cluster"))
    assert sorted(local, key=str) == sorted(remote, key=str)
    for line in local:
        a, b = (np.load(tmp_path / name / "clips" / f"{line['id']}.npz") for name in ("local", "cluster"))
        for array in ("landmarks", "features"):
            np.testing.assert_allclose(a[array], b[array], atol=1e-3)


def test_missing_scheduler(tmp_path, portrait_clip):
    with pytest.raises(ParameterError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9: ") as caught:
        prepare.prepare(
            [Source(portrait_clip, "Bob", 0)], tmp_path, SETTINGS, 10, jobs=1, scheduler="tcp://127.0.0.1:9"
        )
    assert caught.value.parameter == "scheduler"


# --- speakers by face recognition ---------------------------------------------------------------------------


def test_identities_are_kept_and_only_new_videos_described(tmp_path, monkeypatch):
    described = []

    def describe(path):
        described.append(path.stem)
        return {"a": np.eye(128)[0], "b": np.eye(128)[1], "c": np.eye(128)[0]}.get(path.stem)

    monkeypatch.setattr(prepare, "mean_descriptor", describe)
    sources = [Source(tmp_path / f"{name}.mp4", "Bob", 40) for name in "bda"]
    first = prepare.with_identities(sources[:2], tmp_path / "out", jobs=1)
    found = prepare.with_identities([*sources, Source(tmp_path / "c.mp4", "c", 0)], tmp_path / "out", jobs=1)
    assert described == ["b", "d", "a", "c"]
    assert found[:2] == first and first[0] == replace(sources[0], speaker=first[0].speaker)
    assert len({source.speaker for source in found}) == 3
    assert found[2].speaker == found[3].speaker and found[2].speaker.startswith("a-")
    assert {line["person"] for line in read_jsonl(tmp_path / "out" / "identities.jsonl")} == {
        source.speaker for source in found
    }


def test_new_video_of_a_speaker_of_the_dataset_gets_the_same_name(tmp_path, monkeypatch, caplog):
    """Bob's and Cyd's videos were prepared before; Cyd's is no longer there."""
    output = tmp_path / "out"
    output.mkdir()
    names = {"bob": "Bob", "cyd": "Cyd"}
    lines = [{"source": str(tmp_path / f"{name}.mp4"), "person": person} for name, person in names.items()]
    (output / "manifest.jsonl").write_text(prepare._to_jsonl(lines))
    (tmp_path / "bob.mp4").touch()
    monkeypatch.setattr(prepare, "mean_descriptor", lambda path: np.eye(128)[int(path.stem == "stranger")])
    sources = [Source(tmp_path / f"{name}.mp4", name, 0, is_named=False) for name in ("new", "stranger")]
    for _ in range(2):
        new, stranger = prepare.with_identities(sources, output, jobs=1)
        assert (new.speaker, new.is_named) == ("Bob", True)
        assert stranger.speaker.startswith("stranger-")
        (record,) = caplog.records
        assert record.getMessage().startswith(f"1 videos in {output / 'manifest.jsonl'} are no longer there")
        assert record.parameter == "person_by"
        caplog.clear()
    assert len(read_jsonl(output / "identities.jsonl")) == 3


def test_settings_are_checked_before_faces_are_recognised(prepared_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "mean_descriptor", None)
    output, videos = tmp_path / "out", prepared_dataset.parent / "videos"
    shutil.copytree(prepared_dataset, output)
    arguments = [videos, "--output", output, "--person-by", "identity", "--mouth-size", 128, "--jobs", 1]
    assert run_main(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: --output: {output} was prepared with")


def test_unnamed_videos_beside_recognised_ones_are_counted(tmp_path, portrait_clip, monkeypatch, caplog):
    monkeypatch.setattr(prepare, "prepare_video", lambda source, *args: ([], ["too short"]))
    monkeypatch.setattr(prepare, "_check_any_usable", lambda *args: None)
    (tmp_path / "identities.jsonl").touch()
    sources = [Source(portrait_clip, "x", 0, is_named=False), Source(tmp_path / "bob.mp4", "Bob", 0)]
    prepare.prepare(sources, tmp_path, SETTINGS, 10, jobs=1)
    (record,) = caplog.records
    assert record.getMessage().startswith("1 new videos count as speakers of their own, but face recognition named")
    assert record.parameter == "person_by"


def test_descriptors_of_an_interrupted_run_are_used(tmp_path, monkeypatch):
    def describe(path):
        if path.stem == "b" and fails:
            raise KeyboardInterrupt
        described.append(path.stem)
        return np.eye(128)[0]

    described, fails = [], True
    monkeypatch.setattr(prepare, "mean_descriptor", describe)
    sources = [Source(tmp_path / f"{name}.mp4", name, 0) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        prepare.with_identities(sources, tmp_path / "out", jobs=1)
    fails = False
    found = prepare.with_identities(sources, tmp_path / "out", jobs=1)
    assert described == ["a", "b", "c"]
    assert len({source.speaker for source in found}) == 1


# --- command line -------------------------------------------------------------------------------------------


def run_main(*arguments) -> int:
    try:
        run_command_line(prepare.main, *arguments)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.mp4", "--output", "out"], "INPUT: absent.mp4: no such file or folder"),
        (["{folder}", "--output", "out"], "INPUT: no video file ("),
        (["{clip}", "--output", "out", "--mouth-size", "60"], "--mouth-size: expected a multiple of 8, found 60"),
        (["{clip}", "--output", "out", "--val-percent", "101"], "--val-percent: expected 0 to 100, found 101"),
        (["{clip}", "--output", "out", "--person-by", "("], "--person-by: '(' is not a regular expression"),
        (
            ["{clip}", "--output", "out", "--person", "a", "--person-by", "b"],
            "--person-by: not allowed with argument",
        ),
        (["{clip}", "--output", "out", "--jobs", "0"], "--jobs: expected 1 or more, found 0"),
        (["{clip}", "--output", "{clip}"], "--output: cannot create the folder"),
    ],
)
def test_invalid_arguments_are_refused(tmp_path, monkeypatch, capsys, portrait_clip, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_main(*(a.format(clip=portrait_clip, folder=tmp_path) for a in arguments)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path, monkeypatch, capsys, portrait_clip):
    video = shutil.copy(portrait_clip, tmp_path / ("😀" * 62 + "xyz.mp4"))  # the longest name: 255 bytes
    arguments = [video, "--output", tmp_path / "out", "--mouth-size", 64, "--person", "Bob", "--jobs", 1]
    assert run_main(*arguments) == 0
    (line,) = read_jsonl(tmp_path / "out" / "manifest.jsonl")
    assert (line["person"], line["num_frames"]) == ("Bob", 40)
    assert f"dataset: {tmp_path / 'out'}" in capsys.readouterr().out
    with av.open(str(tmp_path / "out" / "clips" / f"{line['id']}.mp4")) as container:
        video = container.streams.video[0]
        assert (video.width, video.height, video.average_rate, video.frames) == (80, 104, 25, 40)
        assert container.streams.audio[0].codec_context.name == "aac"


def test_interrupted(tmp_path, monkeypatch, capsys, portrait_clip):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare", interrupt)
    assert run_main(portrait_clip, "--output", tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted; no partial output is left\n"
