"""What the benchmark of dubs measures: videos of the right size and length, and what inference.py prints."""

from fractions import Fraction
from pathlib import Path

from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import probe, read_frames
from dubbing.pipeline import DubResult
from inference import summary
from scripts.benchmark import SUMMARY, scaled, transcode
from tests.support.media import talking_portrait


def test_scaled_and_transcoded(tmp_path):
    video = talking_portrait(tmp_path / "video.mp4", 10, size=(192, 128))
    source, copy = tmp_path / "source.mp4", tmp_path / "copy.mp4"
    assert scaled(video, 64, 1.0, source) == 25
    assert (probe(source).width, probe(source).height) == (96, 64)
    assert len(load_audio(source)) >= 16000
    cost = transcode(source, copy)
    assert cost.wall_s > 0 and cost.processor_s > 0
    assert len(list(read_frames(copy))) == len(list(read_frames(source))) == 25


def test_summary_of_a_dub_is_understood():
    result = DubResult(50, 50, Fraction(25), first_frame_s=1.23, total_s=4.56)
    assert SUMMARY.search(summary(Path("out.mp4"), result)).groups() == ("4.6", "1.2")
