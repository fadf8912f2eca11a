"""Source frames that are read twice, first for face tracking and later for generation: from a file or live."""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Protocol

import numpy as np

from data_processing.media.frame import Frame, RgbFrame
from data_processing.media.video_reader import read_video, read_video_backward
from utils.errors import ParameterError, TruncatedMediaError
from utils.limits import DEFAULT_LIMITS, Limits

HELD_BYTES = 128_000_000  # of frames of a file: ten seconds of 512 × 512, or 1.6 seconds of 1080p
LATER_USES = 8  # frames by which the second pass, which is read ahead, may be ahead of a call of `frames`
logger = logging.getLogger(__name__)


class FrameSource(Protocol):
    """Frames at a constant rate, in two passes.

    resized: numbers of the frames of the first pass so far at which the source changes its size.
    """

    fps: Fraction | int
    resized: list[int]

    def first_pass(self) -> Iterator[Frame]:
        """All frames, for face tracking."""

    def second_pass(self) -> Iterator[Frame]:
        """All frames once more, for generation; never ahead of `first_pass`."""

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Frames, by rising indices, that `first_pass` has returned and `second_pass` has not."""


class VideoFileSource:
    """A video file. Frames are held in memory from the first pass to the second as long as they fit; from the first
    that does not, the file is decoded once more.

    Args:
        path: any video file.
        fps: frames per second to read it at.
        limits: sanity limits.
    """

    def __init__(self, path: Path, fps: Fraction | int, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path, self.fps, self.limits = path, fps, limits
        self.resized: list[int] = []
        self._warned = False
        self._held: dict[int, Frame] = {}
        self._num_bytes = 0  # of `_held`
        # first passes so far, of which only one holds its frames; how many it has held; whether it goes on holding
        self._num_passes, self._num_held, self._holds = 0, 0, True
        self._is_complete = False  # whether it has held all frames
        self._changed = threading.Condition()

    def first_pass(self) -> Iterator[Frame]:
        with self._changed:
            self._num_passes += 1
            is_first = self._num_passes == 1
        try:
            for frame in read_video(self.path, fps=self.fps, limits=self.limits, resized=self.resized):
                if is_first and self._holds:
                    self._hold(frame)
                yield frame
        except TruncatedMediaError as error:
            if not self._warned:  # one pass for each speaker
                logger.warning("%s; using what precedes it", error, extra={"path": self.path})
            self._warned = True
        except BaseException:  # also when it is closed early
            if is_first:
                self.stop_holding()
            raise
        if is_first:
            self._is_complete = self._holds
            self.stop_holding()

    def second_pass(self) -> Iterator[Frame]:
        index = 0
        while (frame := self._take(index)) is not None:
            yield frame
            index += 1
        if self._is_complete:
            return
        with self._changed:
            self._held.clear()
        with suppress(TruncatedMediaError):
            yield from self._read(index, None)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        with self._changed:
            if all(index in self._held for index in indices):
                return iter([self._held[index] for index in indices])
        return read_video(self.path, indices[0], indices[-1] + 1, self.fps, self.limits, only=frozenset(indices))

    def stop_holding(self) -> None:
        """Hold no further frame; `second_pass` no longer waits for one."""
        with self._changed:
            self._holds = False
            self._changed.notify_all()

    def _hold(self, frame: Frame) -> None:
        with self._changed:
            if self._num_bytes + frame.num_bytes > HELD_BYTES:
                self._holds = False
            else:
                self._held[self._num_held] = frame.copy()  # a decoder keeps its memory until it is closed
                self._num_bytes += frame.num_bytes
                self._num_held += 1
            self._changed.notify_all()

    def _take(self, index: int) -> Frame | None:
        """A held frame, as soon as the first pass has read it; None if it is not held."""
        with self._changed:
            if self._num_passes == 0:
                self._holds = False
            self._changed.wait_for(lambda: index in self._held or not self._holds)
            if (earlier := self._held.pop(index - LATER_USES, None)) is not None:
                self._num_bytes -= earlier.num_bytes
            return self._held.get(index)

    def back_and_forth(self, num_frames: int) -> Iterator[tuple[int, Frame]]:
        """(index, frame) of the first `num_frames` frames backward, forward, backward, … endlessly."""
        if num_frames == 1:  # a photo, which takes longer to decode and to convert than a frame of a video
            yield from repeat((0, RgbFrame(next(self.frames([0])).rgb())))
        while True:
            backward = read_video_backward(self.path, num_frames, fps=self.fps, limits=self.limits)
            yield from zip(reversed(range(num_frames)), backward, strict=True)
            yield from enumerate(self._read(0, num_frames))

    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        return read_video(self.path, start, stop, self.fps, self.limits)


class LiveFrameSource:
    """Frames (H, W, 3) uint8 RGB that arrive once: each is held from the first to the second pass.

    Args:
        frames: the frames.
        fps: their rate.
        num_kept: how many `frames` can return after `second_pass` did.

    Raises (from `first_pass`):
        ParameterError: a frame is not (H, W, 3) uint8, or not of the size of the first one.
    """

    def __init__(self, frames: Iterable[np.ndarray], fps: Fraction | int, num_kept: int = 0) -> None:
        self._frames, self.fps, self._num_kept = iter(frames), fps, num_kept
        self.resized: list[int] = []
        self._held: deque[RgbFrame] = deque()
        self._num_returned = self._num_released = 0

    def first_pass(self) -> Iterator[Frame]:
        shape = None
        for frame in self._frames:
            found = f"{getattr(frame, 'shape', '')} {getattr(frame, 'dtype', type(frame))}".strip()
            is_array = isinstance(frame, np.ndarray) and frame.size > 0
            if not is_array or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
                raise ParameterError("frames", f"expected (H, W, 3) uint8 RGB, found {found}")
            shape = shape or frame.shape
            if frame.shape != shape:
                raise ParameterError("frames", f"expected frames of one size {shape}, found {found}")
            self._held.append(RgbFrame(np.ascontiguousarray(frame)))
            yield self._held[-1]

    def second_pass(self) -> Iterator[Frame]:
        while self._num_returned < self._num_released + len(self._held):
            frame = self._held[self._num_returned - self._num_released]
            self._num_returned += 1
            if self._num_returned - self._num_released > self._num_kept:
                self._held.popleft()
                self._num_released += 1
            yield frame

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        return (self._held[index - self._num_released] for index in indices)
