"""prepare_hdtf: the published lists, downloads by a stand-in for yt-dlp, cutting, and what is left out."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from data_processing.media.audio_io import SAMPLE_RATE, load_audio
from data_processing.media.cutting import Box
from data_processing.media.video_reader import read_frames
from data_processing.sources import find_sources
from scripts import prepare_hdtf
from scripts.prepare_hdtf import Clip, read_lists
from tests.support.commands import run_command_line
from tests.support.media import write_video
from tests.support.numbered_media import click, numbered, numbers
from utils.errors import FileError

# Lines of the published lists, with shorter times where the test cuts.
LISTS = {
    "RD_video_url.txt": "Radio2 https://www.youtube.com/watch?v=uBWJJvynXpA&t=6s\nRadio24 https://www.youtube.com/watch?v=cU0\n",
    "RD_annotion_time.txt": "Radio2.mp4 00:00-00:01 00:01-00:03 \n",
    "RD_crop_wh.txt": "Radio2_0.mp4 40 160 0 160\n",
    "RD_resolution.txt": "Radio2.mp4 480\nRadio24.mp4 720\n",
    "WDA_video_url.txt": (
        "WhipJimClyburn https://www.youtube.com/watch?v=gh3YqnvNdio\n"
        "BarbaraLee0 https://www.youtube.com/watch?v=0unUBVroMfw\n"
        "BarbaraLee1 https://www.youtube.com/watch?v=4LO4cC86OI0\n"
        "LucilleRoybal-Allard https://www.youtube.com/watch?v=dyGp3W5yMwE\n"
        "JamesClyburn https://www.youtube.com/watch?v=eKqPmFleCy0\n"
        "JamesClyburn1 https://www.youtube.com/watch?v=gh3YqnvNdio&t=5s\n"
    ),
    "WDA_annotion_time.txt": (
        "BarbaraLee0.mp4 00:01-00:02\nBarbaraLee1.mp4 00:01-00:02\nJamesClyburn.mp4 00:05-04:40\n"
        "JamesClyburn1.mp4 00:05-04:40\nLucilleRoybal-Allard.mp4 00:10-02:05\nWhipJimClyburn.mp4 00:05-04:40"
    ),
    "WDA_crop_wh.txt": "BarbaraLee0_0.mp4 8 56 0 56\nBarbaraLee1_0.mp4 607 653 41 653\n",
    "WDA_resolution.txt": "BarbaraLee0.mp4 48\nBarbaraLee1.mp4 0\nJamesClyburn.mp4 720\n",
    **dict.fromkeys(("WRA_video_url.txt", "WRA_annotion_time.txt", "WRA_crop_wh.txt", "WRA_resolution.txt"), ""),
}
YT_DLP = """
import os, shutil, sys
from pathlib import Path

here, arguments = Path(__file__).parent, sys.argv[1:]
with (here / "calls.txt").open("a") as file:
    print("\\t".join(arguments), file=file)
name = arguments[-1].split("v=")[1].split("&")[0]
if not (here / f"{name}.mp4").exists():
    print("WARNING: one\\nERROR: [youtube] " + name + ": Video unavailable\\n", file=sys.stderr)
    sys.exit(1)
template = arguments[arguments.index("--output") + 1]
for format_id, suffix in (("137", "mp4"), ("140", "m4a")):
    target = Path(template % {"format_id": format_id, "ext": suffix})
    if suffix == "m4a" and (here / "stop").exists():
        shutil.copy(here / "audio.m4a", f"{target}.part")
        sys.exit(1)
    shutil.copy(here / (f"{name}.mp4" if suffix == "mp4" else "audio.m4a"), target)
"""


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    (tmp_path / "lists").mkdir()
    for name, text in LISTS.items():
        (tmp_path / "lists" / name).write_text(text)
    return tmp_path / "lists"


@pytest.fixture
def youtube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-in for yt-dlp, which has the videos of Radio2 and BarbaraLee0 and lists its calls."""
    folder = tmp_path / "youtube"
    folder.mkdir()
    (folder / "yt_dlp.py").write_text(YT_DLP)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in ("uBWJJvynXpA", "0unUBVroMfw"):
        options = {"g": "40", "preset": "medium"}
        write_video(folder / f"{name}.mp4", (numbered(index) for index in range(100)), options=options)
    with av.open(str(folder / "audio.m4a"), "w", "mp4") as container:
        track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(click(SAMPLE_RATE, 1.5, 4.0)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return folder


def calls(youtube: Path) -> list[list[str]]:
    path = youtube / "calls.txt"
    return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def fetch(lists: Path, output: Path, *flags: str) -> None:
    run_command_line(prepare_hdtf.main, lists, "--output", output, *flags)


def test_lists(lists: Path) -> None:
    videos = {video.name: video for video in read_lists(lists)}
    assert list(videos)[:3] == ["RD_Radio2", "RD_Radio24", "WDA_WhipJimClyburn"]
    radio = videos["RD_Radio2"]
    assert radio.clips == (
        Clip("RD_Radio2_000", 0.0, 1.0, Box(40, 0, 160, 160)),
        Clip("RD_Radio2_001", 1.0, 3.0, None),
    )
    assert (radio.height, videos["WDA_BarbaraLee1"].height, videos["WDA_WhipJimClyburn"].height) == (480, 0, 0)
    assert videos["WDA_LucilleRoybal-Allard"].clips == (Clip("WDA_LucilleRoybal-Allard_000", 10.0, 125.0, None),)
    assert videos["RD_Radio24"].clips == ()


def test_speakers_of_the_lists(lists: Path) -> None:
    speakers = {video.name: video.speaker for video in read_lists(lists)}
    assert speakers["RD_Radio2"] != speakers["RD_Radio24"]  # numbers of recordings, not of one speaker's
    assert speakers["WDA_BarbaraLee0"] == speakers["WDA_BarbaraLee1"] == "WDA_BarbaraLee"
    # two names of one video, so also of the other video with one of the names
    assert speakers["WDA_JamesClyburn"] == speakers["WDA_JamesClyburn1"] == speakers["WDA_WhipJimClyburn"]
    assert len(set(speakers.values())) == 5


@pytest.mark.parametrize("line", ["Radio2.mp4 00:30", "Radio2.mp4 00:30-00:20", "Radio2.mp4 soon-later"])
def test_unexpected_lines_are_refused(lists: Path, line: str) -> None:
    (lists / "RD_annotion_time.txt").write_text(line)
    with pytest.raises(FileError, match="unexpected lines about RD's Radio2"):
        read_lists(lists)
    (lists / "WDA_crop_wh.txt").unlink()
    (lists / "RD_annotion_time.txt").write_text("")
    with pytest.raises(FileError, match=r"WDA_crop_wh\.txt: cannot be read .*; expected the folder HDTF_dataset"):
        read_lists(lists)


def test_clips_speakers_and_what_is_left_out(
    lists: Path, youtube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "100 %"  # a template of yt-dlp
    fetch(lists, output)
    rows = {row["file"]: row["person"] for row in table(output / "clips" / "MANIFEST.tsv")}
    assert rows == {
        "RD_Radio2_000.mp4": "RD_Radio2",
        "RD_Radio2_001.mp4": "RD_Radio2",
        "WDA_BarbaraLee0_000.mp4": "WDA_BarbaraLee",
    }
    sources = find_sources([output / "clips"], Path("nowhere"), None)
    assert {source.path.name: source.speaker for source in sources} == rows
    clip = output / "clips" / "RD_Radio2_001.mp4"
    found = numbers(read_frames(clip))
    assert found == list(range(25, 25 + len(found))) and len(found) > 40
    waveform = load_audio(clip)
    assert np.argmax(np.abs(waveform) > 0.3) / SAMPLE_RATE == pytest.approx(0.5, abs=0.001)
    reasons = {row["name"]: row["reason"] for row in table(output / "left_out.tsv")}
    assert reasons.pop("RD_Radio24") == "the lists have no times"
    assert reasons.pop("WDA_JamesClyburn_000") == "not fetched: [youtube] eKqPmFleCy0: Video unavailable"
    assert set(reasons) == {
        f"WDA_{name}_000" for name in ("BarbaraLee1", "JamesClyburn1", "LucilleRoybal-Allard", "WhipJimClyburn")
    }
    out = capsys.readouterr().out
    assert "3 clips of 2 speakers" in out and "5 of 8 videos not fetched; 6 clips left out" in out
    for call in calls(youtube):  # polite, and the address cannot be taken for an option
        assert int(call[call.index("--sleep-interval") + 1]) >= 5
        assert call[-2] == "--" and call[-1].startswith("https://")
    assert "res:480,vcodec:h264,acodec:aac" in calls(youtube)[0]


def test_continues_where_it_stopped(
    lists: Path, youtube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (youtube / "stop").touch()
    fetch(lists, tmp_path / "out")
    assert table(tmp_path / "out" / "clips" / "MANIFEST.tsv") == []
    assert (tmp_path / "out" / "downloads" / "RD_Radio2.140.m4a.part").exists()
    (youtube / "stop").unlink()
    fetch(lists, tmp_path / "out")
    assert len(table(tmp_path / "out" / "clips" / "MANIFEST.tsv")) == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "clips").glob("*.mp4")}
    num_calls = len(calls(youtube))
    for path in (tmp_path / "out" / "downloads").glob("WDA_BarbaraLee0.*"):  # not needed any more
        path.unlink()
    (tmp_path / "out" / "clips" / "RD_Radio2_001.mp4").unlink()  # cut again without another download
    fetch(lists, tmp_path / "out")
    assert {call[-1].split("v=")[1] for call in calls(youtube)[num_calls:]}.isdisjoint(
        {"uBWJJvynXpA&t=6s", "0unUBVroMfw"}
    )
    assert len(table(tmp_path / "out" / "clips" / "MANIFEST.tsv")) == 3
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.stem for path in before if before[path] != after[path]] == ["RD_Radio2_001"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_hdtf, "_fetched", interrupt)  # at a video before BarbaraLee0
    (tmp_path / "out" / "clips" / "MANIFEST.tsv").unlink()
    with pytest.raises(SystemExit):
        fetch(lists, tmp_path / "out")
    listed = {row["file"] for row in table(tmp_path / "out" / "clips" / "MANIFEST.tsv")}
    assert "WDA_BarbaraLee0_000.mp4" in listed  # no clip is ever without its speaker


def test_boxes(lists: Path, youtube: Path, tmp_path: Path) -> None:
    fetch(lists, tmp_path, "--crop")
    sizes = {row["file"]: next(read_frames(tmp_path / "cropped" / row["file"])).shape for row in rows(tmp_path)}
    # boxes of frames of 480 and 48 lines; the videos have 48, of 64 pixels
    assert sizes == {"RD_Radio2_000.mp4": (16, 16, 3), "WDA_BarbaraLee0_000.mp4": (48, 56, 3)}
    reasons = {row["name"]: row["reason"] for row in table(tmp_path / "left_out.tsv")}
    assert reasons["RD_Radio2_001"] == "the lists have no box"
    assert reasons["WDA_BarbaraLee1_000"] == "the lists have no height of the frames for its box"


def rows(output: Path) -> list[dict[str, str]]:
    return table(output / "cropped" / "MANIFEST.tsv")


def test_stops_if_nothing_can_be_fetched(
    lists: Path, youtube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in youtube.glob("*.mp4"):
        path.unlink()
    monkeypatch.setattr(prepare_hdtf, "MAX_FAILURES", 3)
    with pytest.raises(SystemExit) as caught:
        fetch(lists, tmp_path / "out")
    assert caught.value.code == 2 and len(calls(youtube)) == 3
    message = "error: 3 videos in a row cannot be fetched, the last for: [youtube] 0unUBVroMfw: Video unavailable; "
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_without_yt_dlp(
    lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare_hdtf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        fetch(lists, tmp_path / "out")
    assert caught.value.code == 2
    assert (
        capsys.readouterr().err.splitlines()[-1] == 'error: yt-dlp is not installed: pip install "yt-dlp[default]"'
    )


def test_what_was_fetched_before_ends_a_row_of_failures(
    lists: Path, youtube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_hdtf, "MAX_FAILURES", 5)  # one video is missing before BarbaraLee0, four after it
    for _ in range(2):
        fetch(lists, tmp_path / "out")
    left_out = {row["name"].split("_")[1] for row in table(tmp_path / "out" / "left_out.tsv")}
    assert {"WhipJimClyburn", "BarbaraLee1"} <= left_out
