"""Face tracks: landmarks of a whole video or stream, with short gaps interpolated, smoothed within shots."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from data_processing.face.detectors import no_face_reason, track_landmarks
from data_processing.face.radius import RIGID_LANDMARKS, face_scales
from data_processing.media.video_reader import FPS, read_video
from utils.errors import NoFaceError

MAX_GAP = 12  # frames at 25 fps: longer gaps without a face are not interpolated
SMOOTHING = 1.2  # frames at 25 fps: standard deviation of the zero-lag Gaussian
FADE_S = 0.2  # seconds over which dubbing fades in or out where a face appears or is lost
MIN_SEGMENT_S = 0.4  # seconds: a shorter segment of a track beside a gap is not dubbed, to avoid flicker
JUMP_SCALE = 0.07  # relative change of the face's scale from one frame to the next above which a new shot starts
JUMP_DISTANCE = 1.0  # the same for its position, in units of its scale; a face is about three of them wide
JUMP_REACH = 3  # frames on either side of a jump that change less
MIN_NOSE_POSITION = 0.1  # of the face's width: the nose tip is closer to an ear when the head is turned away


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one video at a constant frame rate.

    points: (T, 68, 2) float32 source pixels (x, y), smoothed; NaN in gaps longer than MAX_GAP.
    found: (T,) bool, True where a face was detected, False where it was interpolated or is missing.
    shots: frame ranges [start, stop) between cuts; a face that appears after a long gap also starts a shot.
    raw: (T, 68, 2) source pixels as detected, NaN without a face; None if not known.
    """

    points: np.ndarray
    found: np.ndarray
    shots: list[tuple[int, int]]
    raw: np.ndarray | None = None

    @property
    def usable(self) -> np.ndarray:
        """(T,) bool: frames with landmarks, detected or interpolated."""
        return ~np.isnan(self.points[:, 0, 0])


def find_landmarks(
    path: Path,
    backend: str = "dlib",
    stop: int | None = None,
) -> Landmarks:
    """Landmarks of the largest face in a video at 25 fps. The frames are streamed.

    Args:
        path: video file.
        backend: one of detectors.BACKENDS.
        stop: number of frames to read; None for the whole video.

    Raises:
        MediaError: the video cannot be read.
        NoFaceError: no face in any frame.
        UserError: the backend is unknown or cannot be used; see `track_landmarks`.
    """
    resized: list[int] = []
    frames = read_video(path, stop=stop, resized=resized)
    tracked = list(track_landmarks(frames, backend, path, resized=resized))
    raw = np.array([points for points, _ in tracked])
    if np.isnan(raw).all():
        raise NoFaceError(path, no_face_reason(len(raw), backend))
    cuts = {index for index, (_, cut) in enumerate(tracked) if cut}
    return clean_landmarks(raw, sorted(cuts | find_jumps(raw)))


def find_jumps(raw: np.ndarray, fps: Fraction | float = FPS) -> set[int]:
    """Frames at which the face suddenly has another size or position: cuts that the images hardly show.

    An editor may enlarge a part of a shot, or leave out a part of it. Then one step is large and those around it
    are small. In a fast movement they are large too, and a frame with bad landmarks has two large steps.

    Args:
        raw: (T, 68, 2) source pixels, NaN without a face.
        fps: frame rate.
    """
    frames = np.flatnonzero(~np.isnan(raw[:, 0, 0]))
    if len(frames) < 2:
        return set()
    scales, centres = face_scales(raw[frames]), raw[frames][:, RIGID_LANDMARKS].mean(axis=1)
    duration = np.diff(frames) * max(1.0, FPS / float(fps))  # in frames at 25 fps
    jumps: set[int] = set()
    for steps, limit in (
        (np.abs(np.diff(np.log(scales))), JUMP_SCALE),
        (np.linalg.norm(np.diff(centres, axis=0), axis=1) / scales[1:], JUMP_DISTANCE),
    ):
        for index in np.flatnonzero(steps > limit * np.sqrt(duration)):
            before = steps[max(0, index - JUMP_REACH) : index].max(initial=0)
            after = steps[index + 1 : index + 1 + JUMP_REACH].max(initial=0)
            # the landmarks may need two frames to follow a jump; a first step cannot be told from a bad first frame
            if index > 0 and before < 0.5 * steps[index] and after < 0.8 * steps[index]:
                jumps.add(int(frames[index + 1]))
    return jumps


def clean_landmarks(raw: np.ndarray, cuts: list[int], fps: Fraction | float = FPS) -> Landmarks:
    """Interpolate short gaps and smooth over time, within shots only.

    Args:
        raw: (T, 68, 2) source pixels, NaN without a face.
        cuts: indices of the frames that start a new shot.
        fps: frame rate.
    """
    max_gap, smoothing = round(MAX_GAP * fps / FPS), SMOOTHING * float(fps) / FPS
    kernel = cv2.getGaussianKernel(2 * round(4 * smoothing) + 1, smoothing)
    found = ~np.isnan(raw[:, 0, 0])
    points = np.full(raw.shape, np.nan, np.float32)
    shots = []
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        detected = start + np.flatnonzero(found[start:stop])
        # A gap too long to interpolate splits the shot into segments.
        for segment in np.split(detected, np.flatnonzero(np.diff(detected) > max_gap + 1) + 1):
            if not len(segment):
                continue
            max_hold = max_gap // 2  # frames without a face at the ends of a shot that repeat the nearest landmarks
            first = start if segment[0] - start <= max_hold else segment[0]
            last = stop - 1 if stop - 1 - segment[-1] <= max_hold else segment[-1]
            index = np.arange(first, last + 1)
            flat = raw[segment].reshape(len(segment), -1)
            filled = np.stack([np.interp(index, segment, column) for column in flat.T], axis=1)
            smooth = cv2.sepFilter2D(filled, -1, np.ones((1, 1)), kernel, borderType=cv2.BORDER_REPLICATE)
            points[index] = smooth.reshape(len(index), 68, 2)
            shots.append((int(first), int(last) + 1))
    return Landmarks(points, found, shots, raw)


@dataclass(frozen=True)
class TrackChunk:
    """Consecutive frames of a face track, with the landmarks of the frames around them.

    start, stop: range [start, stop) of frames.
    numbers: (stop − start,) int, index of each frame's shot, counted over the video; −1 without a face.
    strengths: (stop − start,) in [0, 1], blend strength of the dub: it rises from 0 where the face appears and
        falls to 0 where the face is lost, but not at cuts.
    landmarks: of these frames and of some before and after; row 0 is frame `offset`.
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
        """Rows [first, last) of `landmarks` that belong to the shot of a frame with a face, as far as read."""
        row = frame - self.offset
        return next((first, last) for first, last in self.landmarks.shots if first <= row < last)


def track_chunks(
    tracked: Iterator[tuple[np.ndarray, bool]],
    fps: Fraction | int,
    length: int,
    first_length: int | None = None,
    ahead: int | None = None,
    history: int = 0,
) -> Iterator[TrackChunk]:
    """Clean a stream of landmarks chunk by chunk, each chunk as soon as possible.

    The landmarks equal those of `find_jumps` and `clean_landmarks` for the whole video; for this, up to one second
    after the end of a chunk is read. Before the first frame of a shot is returned, either at least length / 2 of
    its frames or the whole shot has been read.

    With a smaller `ahead`, landmarks are smoothed over the frames that are known, a gap is interpolated once its
    end is known, and a face that is lost fades out over fewer frames.

    Args:
        tracked: for each frame its landmarks (68, 2), NaN without a face, and whether it starts a shot; as from
            `track_landmarks`.
        fps: frame rate.
        length: approximate number of frames per chunk.
        first_length: the same of the first chunk, if it differs.
        ahead: frames that are read after the end of a chunk, if fewer than one second.
        history: frames before a chunk that it includes, if more than one second.
    """
    later_length, length = length, first_length or length
    margin = 2 * max(1, round(MAX_GAP * fps / FPS))
    is_complete = ahead is None or ahead >= margin
    ahead = margin if is_complete else ahead
    raw: list[np.ndarray] = []
    cuts: list[int] = []  # rows of `raw`
    start, offset, number, ended = 0, 0, -1, False
    last_numbered, last_strength = -1, 1.0
    while not ended:
        needed = start + length + ahead - offset
        for points, cut in islice(tracked, needed - len(raw)):
            cuts += [len(raw)] * cut
            raw.append(points)
        ended = len(raw) < needed
        if offset + len(raw) == start:
            return
        all_cuts = sorted({*cuts, *find_jumps(np.array(raw), fps)})
        landmarks = clean_landmarks(np.array(raw), all_cuts, fps)
        stop = offset + len(raw) if ended else start + length
        if not ended and landmarks.shots and start + length // 2 < offset + landmarks.shots[-1][0] < stop:
            stop = offset + landmarks.shots[-1][0]
        numbers, strengths = np.full(len(raw), -1), np.zeros(len(raw))
        for first, last in landmarks.shots:
            if offset + first >= stop or offset + last <= start:
                continue
            appears, is_lost = first > 0 and first not in all_cuts, last < len(raw) and last not in all_cuts
            if (appears or is_lost) and last - first < MIN_SEGMENT_S * fps:
                continue
            number += offset + first > last_numbered
            last_numbered = min(offset + last, stop) - 1
            numbers[first:last] = number
            strengths[first:last] = _fade_strengths(last - first, appears, is_lost, FADE_S * float(fps))
        rows = slice(start - offset, stop - offset)
        if not is_complete:  # a gap may have ended sooner than it seemed
            for row in range(rows.start, rows.stop):
                rise = 1.0 if row in all_cuts else 1 / (FADE_S * float(fps) + 1)
                strengths[row] = last_strength = min(strengths[row], last_strength + rise)
        yield TrackChunk(start, stop, numbers[rows], strengths[rows], landmarks, offset)
        dropped = max(stop - max(margin, history) - offset, 0)
        raw, cuts = raw[dropped:], [cut - dropped for cut in cuts if cut > dropped]
        offset, start, length = offset + dropped, stop, later_length


def _fade_strengths(length: int, appears: bool, is_lost: bool, num_frames: float) -> np.ndarray:
    """(length,) ones; rising over `num_frames` at the start if the face appears, falling at the end if lost."""
    index = np.arange(1, length + 1)
    rise = np.minimum(index / (num_frames + 1), 1) if appears else np.ones(length)
    fall = np.minimum(index[::-1] / (num_frames + 1), 1) if is_lost else np.ones(length)
    return np.minimum(rise, fall)


def mouth_in_view(points: np.ndarray, width: int, height: int) -> bool:
    """Whether the landmarks (68, 2) show a face that is not turned away and whose lips lie inside the frame."""
    lips = points[48:68]
    inside = (lips >= 0).all() and (lips < [width, height]).all()
    left, right = points[0, 0], points[16, 0]
    nose_position = (points[30, 0] - left) / (right - left) if right > left else 0  # 0 at one ear, 1 at the other
    return bool(inside and MIN_NOSE_POSITION < nose_position < 1 - MIN_NOSE_POSITION)
