"""Landmarks and brightness of one face in all source frames, which can be found before networks are loaded."""

from collections import deque
from collections.abc import Iterator
from threading import Event
from typing import NamedTuple

import numpy as np

from data_processing.face.detectors import FaceSelector, largest_face, track_landmarks
from data_processing.face.tracking import mouth_in_view
from data_processing.media.frame import Frame
from dubbing.frame_sources import FrameSource
from dubbing.light import face_levels

SMALL_SIDE = 270  # pixels: shorter side of the frames in which brightness is measured


class TrackedFrame(NamedTuple):
    """What is known of the face in one source frame.

    points: (68, 2) landmarks in source pixels; NaN without a face, and where it is turned away or its mouth is
        outside the frame.
    cut: whether the frame starts a new shot.
    levels: brightness and contrast of the face; None where `points` are NaN.
    """

    points: np.ndarray
    cut: bool
    levels: tuple[float, float] | None


def track_face(
    source: FrameSource,
    detector: str = "dlib",
    select_face: FaceSelector = largest_face,
    cancelled: Event | None = None,
    live: bool = False,
) -> Iterator[TrackedFrame]:
    """Track a face through the first pass over the source frames.

    Args:
        source: the source frames.
        detector: landmark detector, one of BACKENDS.
        select_face: which of several faces.
        cancelled: set it to end soon.
        live: as in `track_landmarks`.
    """
    size, luma_range = (0, 0), (0, 255)
    small: deque[np.ndarray] = deque()  # brightness of the frames whose landmarks are not known yet

    def frames() -> Iterator[Frame]:
        nonlocal size, luma_range
        for frame in source.first_pass():
            if cancelled and cancelled.is_set():
                return
            size, luma_range = (frame.width, frame.height), frame.luma_range
            small.append(frame.luma[:: _step(size), :: _step(size)].copy())
            yield frame

    path = getattr(source, "path", None)
    options = {"choose": select_face, "resized": source.resized, "live": live}
    tracked = track_landmarks(frames(), detector, path, source.fps, **options)
    for points, cut in tracked:
        frame = small.popleft()
        if mouth_in_view(points, *size):
            yield TrackedFrame(points, cut, face_levels(frame, luma_range, points / _step(size)))
        else:
            yield TrackedFrame(np.full_like(points, np.nan), cut, None)


def _step(size: tuple[int, int]) -> int:
    """Every how many pixels of a frame (width, height) are enough to measure the brightness of a face."""
    return max(1, min(size) // SMALL_SIDE)
