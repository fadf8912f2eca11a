"""TODO."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from data_processing.face.detectors import track_landmarks
from data_processing.media.video_reader import FPS, read_frames
from utils.errors import NoFaceError

MAX_GAP = 12  # frames at 25 per second without a face that are interpolated: about half a second
SMOOTHING = 1.2  # frames at 25 per second, deviation of the zero-lag Gaussian
FADE_S = 0.2  # seconds in which redrawing sets in or out where a face appears or is lost
MIN_RUN_S = 0.4  # a face seen for less beside a gap is left alone, so that nothing flickers
TURNED = 0.1  # share of the face's width that the nose's tip must be away from either ear


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one video at 25 frames per second.

    points: (T, 68, 2) float32 source pixels (x, y); NaN where there is no face for longer than MAX_GAP.
    found: (T,) bool, True where the face was seen, False where it was interpolated or is missing.
    shots: frame ranges [start, stop) between cuts; a new face after a gap also starts a shot.
    raw: (T, 68, 2) source pixels as they were found, not smoothed, NaN elsewhere; None where nobody found them.
    """

    points: np.ndarray
    found: np.ndarray
    shots: list[tuple[int, int]]
    raw: np.ndarray | None = None

    @property
    def usable(self) -> np.ndarray:
        """(T,) bool: frames that have landmarks, seen or interpolated."""
        return ~np.isnan(self.points[:, 0, 0])


def find_landmarks(
    path: Path,
    backend: str = "dlib",
    progress: Callable[[Iterator], Iterator] = iter,
    stop: int | None = None,
) -> Landmarks:
    """Landmarks of the largest face through a video (read once, streamed).

    Args:
        path: video file.
        backend: one of BACKENDS.
        progress: wraps the frame iterator, for instance a tqdm bar.
        stop: frame to stop before; None for the whole video.

    Raises:
        UserError: unreadable video, unknown backend, backend's weights or CSV missing, or no face in any frame.
    """
    tracked = list(track_landmarks(progress(read_frames(path, stop=stop)), backend, path))
    raw = np.array([points for points, _ in tracked])
    if np.isnan(raw).all():
        raise NoFaceError(path, f"no face detected in {len(raw)} frames ({backend})")
    return clean_landmarks(raw, [index for index, (_, cut) in enumerate(tracked) if cut])


def clean_landmarks(raw: np.ndarray, cuts: list[int], fps: Fraction | float = FPS) -> Landmarks:
    """Interpolate short gaps and smooth, within shots only.

    Args:
        raw: (T, 68, 2) source pixels, NaN where no face was found.
        cuts: frame indices at which a new shot starts.
        fps: frames per second.
    """
    max_gap, smoothing = round(MAX_GAP * fps / FPS), SMOOTHING * float(fps) / FPS
    found = ~np.isnan(raw[:, 0, 0])
    points = np.full(raw.shape, np.nan, np.float32)
    shots = []
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        seen = start + np.flatnonzero(found[start:stop])
        # a gap too long to interpolate ends one run of frames and starts another
        for run in np.split(seen, np.flatnonzero(np.diff(seen) > max_gap + 1) + 1):
            if not len(run):
                continue
            at_ends = max_gap // 2  # a face missing for a moment at a shot's edge is held
            first = start if run[0] - start <= at_ends else run[0]
            last = stop - 1 if stop - 1 - run[-1] <= at_ends else run[-1]
            index = np.arange(first, last + 1)
            flat = raw[run].reshape(len(run), -1)
            filled = np.stack([np.interp(index, run, column) for column in flat.T], axis=1)
            smooth = gaussian_filter1d(filled, smoothing, axis=0, mode="nearest")
            points[index] = smooth.reshape(len(index), 68, 2)
            shots.append((int(first), int(last) + 1))
    return Landmarks(points, found, shots, raw)


@dataclass(frozen=True)
class TrackChunk:
    """Some consecutive frames of a video, with what is known of the frames around them.

    start, stop: the frames.
    numbers: (stop − start,) the shot of each frame, counted through the video; −1 without a face.
    strengths: (stop − start,) in [0, 1], how far the face may be redrawn: rising from 0 and falling to 0 where it
        appears and is lost, not at cuts.
    landmarks: of these frames and some before and after; its row 0 is frame `offset`.
    """

    start: int
    stop: int
    numbers: np.ndarray
    strengths: np.ndarray
    landmarks: Landmarks
    offset: int

    def points(self, frame: int) -> np.ndarray:
        """Landmarks (68, 2) of one of the frames."""
        return self.landmarks.points[frame - self.offset]

    def shot_rows(self, frame: int) -> tuple[int, int]:
        """Rows [first, last) of `landmarks` with the shot that a frame with a face lies in, as far as is known."""
        row = frame - self.offset
        return next((first, last) for first, last in self.landmarks.shots if first <= row < last)


def track_chunks(
    tracked: Iterator[tuple[np.ndarray, bool]], fps: Fraction | int, length: int
) -> Iterator[TrackChunk]:
    """The landmarks of `track`, cleaned, a stretch of about `length` frames at a time, each as soon as it is known.

    The same as `clean` would make of all frames at once; up to a second more is read ahead for that. Every shot is
    seen for at least half of `length` before its first frame is given, or whole.
    """
    margin = 2 * max(1, round(MAX_GAP * fps / FPS))
    raw: list[np.ndarray] = []
    cuts: list[int] = []  # rows of `raw`
    start, offset, number, ended = 0, 0, -1, False
    while not ended:
        wanted = start + length + margin - offset
        for points, cut in islice(tracked, wanted - len(raw)):
            cuts += [len(raw)] * cut
            raw.append(points)
        ended = len(raw) < wanted
        if offset + len(raw) == start:
            return
        landmarks = clean_landmarks(np.array(raw), cuts, fps)
        stop = offset + len(raw) if ended else start + length
        if not ended and landmarks.shots and start + length // 2 < offset + landmarks.shots[-1][0] < stop:
            stop = offset + landmarks.shots[-1][0]
        numbers, strengths = np.full(len(raw), -1), np.zeros(len(raw))
        for first, last in landmarks.shots:
            if offset + first >= stop or offset + last <= start:
                continue
            appears, is_lost = first > 0 and first not in cuts, last < len(raw) and last not in cuts
            if (appears or is_lost) and last - first < MIN_RUN_S * fps:
                continue
            number += offset + first >= start or number < 0
            numbers[first:last] = number
            strengths[first:last] = _fade_strengths(last - first, appears, is_lost, FADE_S * float(fps))
        rows = slice(start - offset, stop - offset)
        yield TrackChunk(start, stop, numbers[rows], strengths[rows], landmarks, offset)
        known = max(stop - margin - offset, 0)
        raw, cuts, offset, start = raw[known:], [cut - known for cut in cuts if cut > known], offset + known, stop


def _fade_strengths(length: int, appears: bool, is_lost: bool, frames: float) -> np.ndarray:
    """(length,) 1, but rising from 0 within so many frames if the face appears, and falling likewise."""
    index = np.arange(1, length + 1)
    rise = np.minimum(index / (frames + 1), 1) if appears else np.ones(length)
    fall = np.minimum(index[::-1] / (frames + 1), 1) if is_lost else np.ones(length)
    return np.minimum(rise, fall)


def mouth_in_view(points: np.ndarray, width: int, height: int) -> bool:
    """Whether a face's landmarks (68, 2) show it from the front and its lips inside the picture."""
    lips = points[48:68]
    inside = (lips >= 0).all() and (lips < [width, height]).all()
    left, right = points[0, 0], points[16, 0]
    turned = (points[30, 0] - left) / (right - left) if right > left else 0  # of the nose's tip between the ears
    return bool(inside and TURNED < turned < 1 - TURNED)
