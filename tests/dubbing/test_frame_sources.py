"""Frame sources: files and live frames."""

import re
from contextlib import closing
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from data_processing.media.frame import Frame
from data_processing.media.video_reader import read_frames
from dubbing import frame_sources
from dubbing.frame_sources import LiveFrameSource, VideoFileSource
from dubbing.prefetch import Prefetch
from utils.errors import ParameterError


def test_back_and_forth(portrait_clip: Path) -> None:
    frames = list(read_frames(portrait_clip))
    played = list(islice(VideoFileSource(portrait_clip, 25).back_and_forth(40), 100))
    order = [*reversed(range(40)), *range(40), *reversed(range(20, 40))]
    assert [index for index, _ in played] == order
    assert all(np.array_equal(frame.rgb(), frames[index]) for index, frame in played)


def test_live_frames_stay_available_for_some_time() -> None:
    frames = [np.full((4, 6, 3), number, np.uint8) for number in range(20)]
    source = LiveFrameSource(iter(frames), 25, num_kept=5)
    first, second = source.first_pass(), source.second_pass()
    for number in range(10):
        next(first), next(second)
        assert len(source._held) == min(number + 1, 5)
    list(islice(first, 3))
    found = [frame.rgb()[0, 0, 0] for frame in source.frames([5, 9, 10, 12])]
    assert found == [5, 9, 10, 12]
    assert [frame.rgb()[0, 0, 0] for frame in second] == [10, 11, 12]


def same_samples(frame: Frame, other: Frame) -> bool:
    return all(np.array_equal(*planes) for planes in zip(frame.planes, other.planes, strict=True))


def decoded(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts how often a file is decoded."""
    read = Mock(side_effect=frame_sources.read_video)
    monkeypatch.setattr(frame_sources, "read_video", read)
    return read


def test_frames_that_fit_into_memory_are_decoded_once(portrait_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = decoded(monkeypatch)
    source = VideoFileSource(portrait_clip, 25)
    first = list(source.first_pass())
    second = source.second_pass()
    taken = list(islice(second, 12))
    chosen = list(source.frames([4, 20]))  # frame 4 is read ahead, but not done with
    taken += second
    assert read.call_count == 1
    assert chosen[0] is taken[4] and chosen[1] is taken[20]
    assert len(taken) == len(first) == 40
    assert all(same_samples(*pair) for pair in zip(taken, first, strict=True))


@pytest.mark.parametrize("num_held", [0, 1, 30])
def test_frames_that_do_not_fit_are_decoded_again(
    num_held: int, portrait_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = next(VideoFileSource(portrait_clip, 25).first_pass()).num_bytes
    monkeypatch.setattr(frame_sources, "HELD_BYTES", num_held * size)
    read = decoded(monkeypatch)
    source = VideoFileSource(portrait_clip, 25)
    first = list(source.first_pass())
    assert all(
        same_samples(frame, first[index]) for frame, index in zip(source.frames([1, 31]), [1, 31], strict=True)
    )
    second = list(source.second_pass())
    assert [frame.is_own for frame in second] == [True] * num_held + [False] * (40 - num_held)
    assert all(same_samples(*pair) for pair in zip(second, first, strict=True))
    assert read.call_count == 3


def test_second_pass_waits_for_frames_that_are_held(portrait_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = decoded(monkeypatch)
    source = VideoFileSource(portrait_clip, 25)
    first = source.first_pass()
    frame = next(first)
    with closing(Prefetch(source.second_pass(), 4, source.stop_holding)) as second:
        assert same_samples(next(second), frame)
        frames = [next(first) for _ in range(3)]
        assert all(same_samples(next(second), frame) for frame in frames)
        assert read.call_count == 1
        first.close()  # tracking was cancelled
        assert next(second).num_bytes == frame.num_bytes
    assert read.call_count == 2


def test_a_second_pass_alone_decodes(portrait_clip: Path) -> None:
    source = VideoFileSource(portrait_clip, 25)
    assert len(list(source.second_pass())) == len(list(source.first_pass())) == 40
    assert not source._held


def test_photo_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    Image.fromarray(image).save(tmp_path / "photo.png")
    source = VideoFileSource(tmp_path / "photo.png", 25)
    read = decoded(monkeypatch)
    (first,) = source.first_pass()
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
