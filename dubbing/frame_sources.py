"""Where the frames of a dub come from: a file, read twice, or a camera, held for a while; and making them ahead."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from data_processing.media.video_reader import read_frames, read_frames_backward
from utils.errors import TruncatedMediaError


class FrameSource(Protocol):
    """Frames that are looked at twice: once for the face in them, later to redraw it."""

    fps: Fraction | int

    def look(self) -> Iterator[np.ndarray]:
        """All frames, (H, W, 3) uint8 RGB, for the first time."""

    def again(self) -> Iterator[np.ndarray]:
        """All frames for the second time, none before `look` has given it."""

    def frame(self, index: int) -> np.ndarray:
        """One that `look` has given and `again` has not."""


class VideoFileSource:
    """Footage that is read twice, so that none of it need be held."""

    def __init__(self, path: Path, fps: Fraction | int) -> None:
        self.path, self.fps = path, fps
        self._told = False

    def look(self) -> Iterator[np.ndarray]:
        try:
            yield from read_frames(self.path, fps=self.fps)
        except TruncatedMediaError as error:
            if not self._told:  # to everybody who looks
                print(f"warning: {error}; using what came before", file=sys.stderr)
            self._told = True

    def again(self) -> Iterator[np.ndarray]:
        with suppress(TruncatedMediaError):
            yield from read_frames(self.path, fps=self.fps)

    def frame(self, index: int) -> np.ndarray:
        return next(read_frames(self.path, index, index + 1, fps=self.fps))

    def back_and_forth(self, num_frames: int) -> Iterator[tuple[int, np.ndarray]]:
        """(index, frame) of the video played backward, forward, backward, … without end."""
        while True:
            backward = read_frames_backward(self.path, num_frames, fps=self.fps)
            yield from zip(reversed(range(num_frames)), backward, strict=True)
            yield from enumerate(read_frames(self.path, 0, num_frames, fps=self.fps))


class LiveFrameSource:
    """Footage that comes once: frames are held from when they are looked at to when they are drawn."""

    def __init__(self, frames: Iterable[np.ndarray], fps: Fraction | int) -> None:
        self._frames, self.fps = iter(frames), fps
        self._held: deque[np.ndarray] = deque()
        self._gone = 0

    def look(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            self._held.append(frame)
            yield frame

    def again(self) -> Iterator[np.ndarray]:
        while self._held:
            self._gone += 1
            yield self._held.popleft()

    def frame(self, index: int) -> np.ndarray:
        return self._held[index - self._gone]
