"""Frame sources: files and live frames."""

import re
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from data_processing.media.video_reader import read_frames
from dubbing import frame_sources
from dubbing.frame_sources import LiveFrameSource, VideoFileSource
from utils.errors import ParameterError


def test_back_and_forth(portrait_clip: Path) -> None:
    frames = list(read_frames(portrait_clip))
    played = list(islice(VideoFileSource(portrait_clip, 25).back_and_forth(40), 100))
    order = [*reversed(range(40)), *range(40), *reversed(range(20, 40))]
    assert [index for index, _ in played] == order
    assert all(np.array_equal(frame.rgb(), frames[index]) for index, frame in played)


def test_photo_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    Image.fromarray(image).save(tmp_path / "photo.png")
    source = VideoFileSource(tmp_path / "photo.png", 25)
    (first,) = source.first_pass()
    read = Mock(side_effect=frame_sources.read_video)
    monkeypatch.setattr(frame_sources, "read_video", read)
    monkeypatch.setattr(frame_sources, "read_video_backward", read)
    played = list(islice(source.back_and_forth(1), 50))
    assert all(index == 0 and np.array_equal(frame.rgb(), image) for index, frame in [(0, first), *played])
    assert read.call_count == 1


def test_live_frames_are_held_between_the_passes() -> None:
    frames = [np.full((2, 2, 3), index, np.uint8) for index in range(5)]
    source = LiveFrameSource(frames, 25)
    first, second = source.first_pass(), source.second_pass()
    for _ in range(3):
        next(first)
    assert next(second).rgb() is frames[0]
    assert [id(frame.rgb()) for frame in source.frames([1, 2])] == [id(frames[1]), id(frames[2])]
    assert [id(frame.rgb()) for frame in first] == list(map(id, frames[3:]))
    assert all(one.rgb() is other for one, other in zip(second, frames[1:], strict=True))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (np.zeros((4, 6, 3)), "uint8 RGB, found (4, 6, 3) float64"),
        (np.zeros((4, 6), np.uint8), "uint8 RGB, found (4, 6) uint8"),
        (np.zeros((4, 6, 4), np.uint8), "uint8 RGB, found (4, 6, 4) uint8"),
        (np.zeros((3, 4, 6), np.uint8), "uint8 RGB, found (3, 4, 6) uint8"),
        (np.zeros((0, 6, 3), np.uint8), "uint8 RGB, found (0, 6, 3) uint8"),
        (np.zeros((6, 4, 3), np.uint8), "one size (4, 6, 3), found (6, 4, 3) uint8"),
        (None, "uint8 RGB, found <class 'NoneType'>"),
    ],
)
def test_live_frames_are_checked(second: object, reason: str) -> None:
    frames = LiveFrameSource([np.zeros((4, 6, 3), np.uint8), second], 25).first_pass()
    next(frames)
    with pytest.raises(ParameterError, match=re.escape(reason)) as caught:
        next(frames)
    assert caught.value.parameter == "frames"


def test_live_frames_may_be_views() -> None:
    """As of a camera that gives BGR."""
    bgr = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (frame,) = LiveFrameSource([bgr[..., ::-1]], 25).first_pass()
    assert frame.rgb().flags.c_contiguous
    assert np.array_equal(frame.rgb(), bgr[..., ::-1])
