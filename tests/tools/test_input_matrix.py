"""The input matrix: inference.py on videos with and without a face."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dubbing.pipeline import DubResult
from inference import summary
from tests.support.media import h264, text_file
from tests.tools.input_matrix import describe, dub, unchanged_frames


def test_describe(tmp_path):
    frames = [np.full((48, 64, 3), 20 + 7 * index, np.uint8) for index in range(20)]
    *video, audio = describe(h264(tmp_path / "clip.mkv", frames))
    assert video == ["64×48", "25", "20"]
    assert float(audio.removesuffix(" s")) == pytest.approx(1, abs=0.065)  # a packet of AAC is 64 ms


@pytest.mark.slow
def test_errors_are_reported(tmp_path):
    audio = h264(tmp_path / "clip.mkv", [np.zeros((48, 64, 3), np.uint8)] * 20)
    path = text_file(tmp_path / "text.mp4")
    succeeded, messages = dub(path, audio, tmp_path / "out.mp4")
    assert not succeeded and len(messages) == 1
    assert messages[0].startswith(f"error: --video: {path}: not a media file")


@pytest.mark.parametrize(("num_dubbed", "expected"), [(50, []), (37, ["13 frames left unchanged"])])
def test_unchanged_frames(num_dubbed, expected):
    result = DubResult(50, num_dubbed, Fraction(25), first_frame_s=1.0, total_s=2.0)
    assert unchanged_frames(summary(Path("out.mp4"), result)) == expected
