"""Dubbing the videos of a folder, with a stand-in for the pipeline."""

from pathlib import Path

import pytest
from distributed import LocalCluster

from data_processing.media.audio_io import SAMPLE_RATE, load_audio
from evaluation.dubs import dub_folder
from tests.support.media import no_face_video
from utils.errors import MediaError, OutputError, ParameterError


class Recorder:
    """Records the names of source video, driving audio and output; fails for the sources in `broken`."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.broken = broken
        self.calls: list[tuple[str, str, str]] = []

    def __call__(self, video: Path, audio: Path, output: Path) -> None:
        self.calls.append((video.name, audio.name, output.name))
        if video.name in self.broken:
            raise MediaError(video, "no video stream")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    folder.mkdir()
    for name in ("a.mp4", "b.mov", "c.mkv", "notes.txt"):
        (folder / name).touch()
    return folder


def test_each_video_is_dubbed_with_its_own_audio(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "dubbed"
    dub_folder(Recorder(), folder, output)
    (output / "old.mp4").touch()
    dub = Recorder(broken=("b.mov",))
    failed = dub_folder(dub, folder, output)
    assert dub.calls == [("a.mp4", "a.mp4", "a.mp4"), ("b.mov", "b.mov", "b.mp4"), ("c.mkv", "c.mkv", "c.mp4")]
    assert failed == {"b": f"{folder}/b.mov: no video stream"}
    assert not (output / "old.mp4").exists()


def test_the_audio_of_the_next_video(folder: Path, tmp_path: Path) -> None:
    dub = Recorder()
    assert dub_folder(dub, folder, tmp_path / "dubbed", "next") == {}
    assert [audio for _, audio, _ in dub.calls] == ["b.mov", "c.mkv", "a.mp4"]
    for name in ("b.mov", "c.mkv"):
        (folder / name).unlink()
    with pytest.raises(ParameterError, match="expected two videos or more") as caught:
        dub_folder(dub, folder, tmp_path / "dubbed", "next")
    assert caught.value.parameter == "cross"


def load() -> str:
    return "pipeline"


def write_names(loaded: str, video: Path, audio: Path, output: Path) -> None:
    if video.stem == "b":
        raise MediaError(video, "no video stream")
    output.write_text(f"{loaded} {video.name} {audio.name}")


def test_a_cluster_dubs_as_this_process_does(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        for name, scheduler in (("here", None), ("there", cluster.scheduler_address)):
            failed = dub_folder(write_names, folder, tmp_path / name, "next", scheduler=scheduler, load=load)
            assert failed == {"b": f"{folder}/b.mov: no video stream"}
            assert "dubbing: 100%" in capsys.readouterr().err
            texts = {path.name: path.read_text() for path in (tmp_path / name).glob("*.*4")}
            assert texts == {"a.mp4": "pipeline a.mp4 b.mov", "c.mp4": "pipeline c.mkv a.mp4"}


def test_silence_is_digital_and_as_long_as_the_video(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    no_face_video(tmp_path / "real" / "a.mp4", num_frames=30)
    waveforms = []

    def dub(video: Path, audio: Path, output: Path) -> None:
        waveforms.append(load_audio(audio))

    assert dub_folder(dub, tmp_path / "real", tmp_path / "dubbed", "silence") == {}
    assert [(len(waveform), float(abs(waveform).max())) for waveform in waveforms] == [(1.2 * SAMPLE_RATE, 0)]


def test_output_that_cannot_be_written_stops_at_once(folder: Path, tmp_path: Path) -> None:
    calls = []

    def dub(video: Path, audio: Path, output: Path) -> None:
        calls.append(video)
        raise OutputError(output, "cannot be written: the disk is full")

    with pytest.raises(OutputError, match="the disk is full"):
        dub_folder(dub, folder, tmp_path / "dubbed")
    assert len(calls) == 1
    with pytest.raises(OutputError, match="dubbed/a: cannot be written: "):
        (tmp_path / "file").touch()
        dub_folder(dub, folder, tmp_path / "file" / "dubbed/a")


def test_videos_of_others_are_not_deleted(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "dubbed"
    output.mkdir()
    (output / "mine.mp4").touch()
    with pytest.raises(OutputError, match="has videos that this command has not written") as caught:
        dub_folder(Recorder(), folder, output)
    assert caught.value.path == output
    assert [path.name for path in output.iterdir()] == ["mine.mp4"]


def test_an_unexpected_error_does_not_lose_the_other_videos(folder: Path, tmp_path: Path) -> None:
    def dub(video: Path, audio: Path, output: Path) -> None:
        if video.stem == "b":
            raise MemoryError("no room")

    assert dub_folder(dub, folder, tmp_path / "dubbed") == {"b": "MemoryError: no room"}


def test_it_is_an_error_if_every_video_fails(folder: Path, tmp_path: Path) -> None:
    dub = Recorder(broken=("a.mp4", "b.mov", "c.mkv"))
    with pytest.raises(MediaError, match=r"no video could be dubbed \(.*a\.mp4: no video stream\)") as caught:
        dub_folder(dub, folder, tmp_path / "dubbed")
    assert caught.value.path == folder
