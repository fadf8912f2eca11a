"""Frames -> 68 face landmarks per frame, smoothed, with gaps filled and shots found.

Backends: `dlib` (needs no connection, the default), `face_alignment` (more exact; fetches its weights at first
use) and `openface` (reads a CSV that OpenFace wrote, named like the video, beside it).
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

from data_processing.errors import UserError
from data_processing.geometry import sample_region
from data_processing.video import FPS, read_frames
from data_processing.weights import weight_path

BACKENDS = ("dlib", "face_alignment", "openface")
MAX_GAP = 12  # frames at 25 per second without a face that are interpolated: about half a second
SMOOTHING = 1.2  # frames at 25 per second, deviation of the zero-lag Gaussian
FADE_S = 0.2  # seconds in which redrawing sets in or out where a face appears or is lost
MIN_RUN_S = 0.4  # a face seen for less beside a gap is left alone, so that nothing flickers
DETECT_EVERY = 5  # frames between face detections; landmarks are tracked between them
TURNED = 0.1  # share of the face's width that the nose's tip must be away from either ear
CUT_LEVEL = 35.0  # mean grey-level change of a thumbnail that makes a shot cut
DETECTION_SIDES = (640, 1280)  # longer side in pixels of the reduced frame: first try, second try
# Boxes (K, 4) of faces, left, top, right, bottom, K > 0; function that finds the landmarks (68, 2) in one; frame
# (H, W, 3) uint8 RGB -> the number of the one meant, None if it is not among them.
Choice = Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray], np.ndarray], int | None]


def largest(boxes: np.ndarray, fit: Callable, frame: np.ndarray) -> int:
    """The Choice where nobody chose."""
    return int(np.argmax(boxes[:, 2] - boxes[:, 0]))


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
    flag: str = "--video",
    stop: int | None = None,
) -> Landmarks:
    """Landmarks of the largest face through a video (read once, streamed).

    Args:
        path: video file.
        backend: one of BACKENDS.
        progress: wraps the frame iterator, for instance a tqdm bar.
        flag: where the path came from, for error messages.
        stop: frame to stop before; None for the whole video.

    Raises:
        UserError: unreadable video, unknown backend, backend's weights or CSV missing, or no face in any frame.
    """
    tracked = list(track(progress(read_frames(path, stop=stop, flag=flag)), backend, path))
    raw = np.array([points for points, _ in tracked])
    if np.isnan(raw).all():
        raise UserError(f"{flag}: no face found in any of the {len(raw)} frames of {path} ({backend})")
    return clean(raw, [index for index, (_, cut) in enumerate(tracked) if cut])


def track(
    frames: Iterator[np.ndarray],
    backend: str,
    path: Path | None = None,
    fps: Fraction | int = FPS,
    first: int = 0,
    choose: Choice = largest,
) -> Iterator[tuple[np.ndarray, bool]]:
    """(landmarks (68, 2) of a face or NaN, whether a new shot starts) of every frame, as they come.

    At most DETECT_EVERY frames are read ahead. Of several faces `choose` takes one, whenever they are looked for.
    Backend openface needs the `path` of the video, and its frame rate and the number of the `first` frame where
    they are others; it has chosen its face already.

    Raises:
        UserError: unknown backend, or its weights or CSV missing.
    """
    if backend == "dlib":
        return _with_dlib(frames, choose)
    if backend == "face_alignment":
        return _with_face_alignment(frames, choose)
    if backend == "openface":
        if choose is not largest:
            raise UserError("--face: OpenFace has chosen the face; expected --landmarks dlib or face_alignment")
        if path is None:
            raise UserError("--landmarks openface: expected a video file, found frames without one")
        return _with_openface(frames, path.with_suffix(".csv"), float(fps), first)
    raise UserError(f"--landmarks: expected one of {', '.join(BACKENDS)}, found {backend}")


def clean(raw: np.ndarray, cuts: list[int], fps: Fraction | float = FPS) -> Landmarks:
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
class Stretch:
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

    def seen_of(self, frame: int) -> tuple[int, int]:
        """Rows [first, last) of `landmarks` with the shot that a frame with a face lies in, as far as is known."""
        row = frame - self.offset
        return next((first, last) for first, last in self.landmarks.shots if first <= row < last)


def follow(tracked: Iterator[tuple[np.ndarray, bool]], fps: Fraction | int, length: int) -> Iterator[Stretch]:
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
        landmarks = clean(np.array(raw), cuts, fps)
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
            strengths[first:last] = _fading(last - first, appears, is_lost, FADE_S * float(fps))
        rows = slice(start - offset, stop - offset)
        yield Stretch(start, stop, numbers[rows], strengths[rows], landmarks, offset)
        known = max(stop - margin - offset, 0)
        raw, cuts, offset, start = raw[known:], [cut - known for cut in cuts if cut > known], offset + known, stop


def _fading(length: int, appears: bool, is_lost: bool, frames: float) -> np.ndarray:
    """(length,) 1, but rising from 0 within so many frames if the face appears, and falling likewise."""
    index = np.arange(1, length + 1)
    rise = np.minimum(index / (frames + 1), 1) if appears else np.ones(length)
    fall = np.minimum(index[::-1] / (frames + 1), 1) if is_lost else np.ones(length)
    return np.minimum(rise, fall)


def in_view(points: np.ndarray, width: int, height: int) -> bool:
    """Whether a face's landmarks (68, 2) show it from the front and its lips inside the picture."""
    lips = points[48:68]
    inside = (lips >= 0).all() and (lips < [width, height]).all()
    left, right = points[0, 0], points[16, 0]
    turned = (points[30, 0] - left) / (right - left) if right > left else 0  # of the nose's tip between the ears
    return bool(inside and TURNED < turned < 1 - TURNED)


def mouth_shape(points: np.ndarray) -> np.ndarray:
    """How lips and chin stand in every frame of a clip, whatever the head does: (T, 68, 2) -> (T, 50) float32.

    Lips (48–67) and chin (6–10) seen from the nose base, turned upright by the eyes, in units of the distance
    between the eyes, as differences from their mean over the clip.
    """
    eyes = points[:, 42:48].mean(axis=1) - points[:, 36:42].mean(axis=1)
    distance = np.linalg.norm(eyes, axis=1)[:, None, None]
    x, y = np.moveaxis((points[:, [*range(48, 68), *range(6, 11)]] - points[:, 33:34]) / distance, 2, 0)
    cos, sin = (eyes / distance[:, 0]).T[..., None]
    shape = np.concatenate([cos * x + sin * y, cos * y - sin * x], axis=1)
    return (shape - shape.mean(axis=0)).astype(np.float32)


def mouth_opening(points: np.ndarray) -> np.ndarray:
    """How far the inner lips are apart, in parts of the face from eyes to chin: (T, 68, 2) -> (T,)."""
    face = np.linalg.norm(points[:, 8] - points[:, 36:48].mean(axis=1), axis=1)
    return (points[:, 66, 1] - points[:, 62, 1]) / face


def lip_features(points: np.ndarray) -> np.ndarray:
    """What the lips do, as features in place of a sound's: (T, 68, 2) -> (T, 29) float32, mostly within [-3, 3].

    Heights, widths and openings of lips and chin from `mouth_shape`, left and right averaged, so that a mirrored
    face has the same.
    """
    shape = mouth_shape(points)
    x, y = (dict(zip([*range(48, 68), *range(6, 11)], part.T, strict=True)) for part in np.split(shape, 2, axis=1))
    pairs = [(48, 54), (49, 53), (50, 52), (60, 64), (61, 63), (67, 65), (59, 55), (58, 56), (7, 9), (6, 10)]
    heights = [(y[left] + y[right]) / 2 for left, right in pairs] + [y[middle] for middle in (51, 62, 66, 57, 8)]
    widths = [x[right] - x[left] for left, right in pairs]
    openings = [y[66] - y[62], y[57] - y[51], (y[67] + y[65] - y[61] - y[63]) / 2, y[8] - y[57]]
    return np.clip(20 * np.stack([*heights, *widths, *openings], axis=1), -3, 3).astype(np.float32)


class _CutDetector:
    """Says whether a frame starts a new shot, by the change of a small grey picture."""

    def __init__(self) -> None:
        self.last: np.ndarray | None = None

    def __call__(self, gray: np.ndarray) -> bool:
        thumbnail = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        cut = self.last is not None and float(np.abs(thumbnail - self.last).mean()) > CUT_LEVEL
        self.last = thumbnail
        return cut


@cache
def _dlib_models():
    import dlib

    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(weight_path("landmarks68")))


def _with_dlib(frames: Iterator[np.ndarray], choose: Choice) -> Iterator[tuple[np.ndarray, bool]]:
    """Follow the face from frame to frame, and have the detector confirm it on every DETECT_EVERY-th.

    Where it does not, the frames since the last confirmation count as missing, and the face is looked for again on
    the whole frame; another face found elsewhere starts a new shot.
    """
    is_cut, missing = _CutDetector(), np.full((68, 2), np.nan)
    waiting: list[tuple[np.ndarray, bool]] = []  # since the last confirmation
    points, last_box = None, None
    for index, frame in enumerate(frames):
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        cut = is_cut(gray)
        if cut:
            yield from waiting
            waiting, points, last_box = [], None, None
        box = None if points is None else _box_around(points)
        confirmed = False
        if box is not None and index % DETECT_EVERY == 0:
            confirmed = _confirm(gray, box)
            if not confirmed:
                waiting = [(missing, was_cut) for _, was_cut in waiting]
                box = None
        if box is None:
            box = _detect(gray, frame, choose)
            confirmed = True  # that there is a face or none
            if box is not None and last_box is not None:
                cut |= bool(np.abs(box - last_box).max() > last_box[2] - last_box[0])
        points = None if box is None else _fit(gray, box)
        last_box = last_box if box is None else box
        waiting.append((missing if points is None else points, cut))
        if confirmed:
            yield from waiting
            waiting = []
    yield from waiting


def _box_around(points: np.ndarray) -> np.ndarray:
    """The box (left, top, right, bottom) that dlib's detector puts around such landmarks (68, 2)."""
    size = 1.07 * float((points.max(axis=0) - points.min(axis=0)).mean())
    centre = points.mean(axis=0) - [0, 0.06 * size]
    return np.concatenate([centre - size / 2, centre + size / 2])


def _confirm(gray: np.ndarray, box: np.ndarray) -> bool:
    """Whether the detector sees a face in its expected box, looking at its surroundings only, at one size."""
    detector, _ = _dlib_models()
    size, centre = box[2] - box[0], (box[:2] + box[2:]) / 2
    surroundings = sample_region(gray, *(centre - size), 2 * size / 240, (240, 240))
    return any(
        abs(b.width() - 120) < 48 and np.abs([b.center().x - 120, b.center().y - 120]).max() < 48
        for b in detector(surroundings, 0)
    )


def _detect(gray: np.ndarray, frame: np.ndarray, choose: Choice) -> np.ndarray | None:
    """The box of the chosen face on a whole frame, grey and in colour."""
    detector, _ = _dlib_models()
    for side in DETECTION_SIDES:
        scale = side / max(gray.shape)
        if scale < 1 or side > DETECTION_SIDES[0]:
            scale = min(scale, 2.0)
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            reduced = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=method)
        else:
            scale, reduced = 1.0, gray
        found = detector(reduced, 0)
        if not len(found):
            continue
        boxes = np.array([[b.left(), b.top(), b.right(), b.bottom()] for b in found], float) / scale
        chosen = choose(boxes, lambda box: _fit(gray, box), frame)
        if chosen is not None:
            return boxes[chosen]
    return None


def _fit(gray: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Landmarks (68, 2) in a face box, as the mean over four slightly moved boxes.

    dlib answers in whole pixels and trembles with the box; fitting on a face enlarged to 256 pixels and
    averaging brings both well below a pixel.
    """
    import dlib

    _, predictor = _dlib_models()
    size, centre = box[2] - box[0], (box[:2] + box[2:]) / 2
    step = size / 256  # source pixels per pixel of the enlarged face
    corner = centre - size
    face = sample_region(gray, *corner, step, (512, 512))
    total = np.zeros((68, 2))
    for dx, dy in ((-10, 0), (10, 0), (0, -10), (0, 10)):
        shape = predictor(face, dlib.rectangle(128 + dx, 128 + dy, 384 + dx, 384 + dy))
        total += [(part.x, part.y) for part in shape.parts()]
    return (total / 4 + 0.5) * step + corner - 0.5  # dlib counts pixel centres


@cache
def _face_alignment_model():
    try:
        import face_alignment
    except ImportError:
        raise UserError("--landmarks face_alignment: it is not installed (pip install face-alignment)") from None
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device=device)
    except OSError as error:  # its weights are fetched at first use
        raise UserError(
            f"--landmarks face_alignment: its weights cannot be fetched ({error}); use --landmarks dlib"
        ) from None


def _with_face_alignment(frames: Iterator[np.ndarray], choose: Choice) -> Iterator[tuple[np.ndarray, bool]]:
    """S3FD on every DETECT_EVERY-th frame, 2DFAN4 on every frame with the box that follows the face."""
    is_cut, missing = _CutDetector(), np.full((68, 2), np.nan)
    model = _face_alignment_model()
    points = None
    for index, frame in enumerate(frames):
        cut = is_cut(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
        boxes = [_box_around(points)] if points is not None and not cut and index % DETECT_EVERY else None
        faces = model.get_landmarks_from_image(frame, detected_faces=boxes) or []
        points = None
        if faces:
            found = np.asarray(faces, float)
            boxes = np.concatenate([found.min(axis=1), found.max(axis=1)], axis=1)

            def fit(box: np.ndarray, found=found, boxes=boxes) -> np.ndarray:
                return found[np.abs(boxes - box).sum(axis=1).argmin()]

            chosen = choose(boxes, fit, frame)
            points = None if chosen is None else found[chosen]
        yield missing if points is None else points, cut


def _with_openface(
    frames: Iterator[np.ndarray], csv_path: Path, fps: float, first: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Rows of an OpenFace CSV, by column name, moved to `fps` by their timestamps."""
    if not csv_path.is_file():
        raise UserError(f"--landmarks openface: expected OpenFace's output at {csv_path}, found no such file")
    try:
        with csv_path.open(newline="") as file:
            rows = [{key.strip(): value for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--landmarks openface: expected a CSV file, found {csv_path} ({error})") from None
    wanted = ["timestamp", "success", *(f"{axis}_{k}" for k in range(68) for axis in "xy")]
    absent = [name for name in wanted if not rows or name not in rows[0]]
    if absent:
        raise UserError(f"--landmarks openface: {csv_path} has no rows or no column {', '.join(absent[:3])}")
    try:
        times = np.array([float(row["timestamp"]) for row in rows])
        success = np.array([float(row["success"]) > 0 for row in rows])
        points = np.array([[float(row[name]) for name in wanted[2:]] for row in rows]).reshape(-1, 68, 2)
    except (TypeError, ValueError) as error:
        raise UserError(f"--landmarks openface: a cell of {csv_path} is not a number ({error})") from None
    points[~(success & np.isfinite(points).all(axis=(1, 2)))] = np.nan
    missing = np.full((68, 2), np.nan)
    reach = 2 / FPS  # seconds from a frame to its row; beyond that the CSV ends too early or has a hole
    is_cut = _CutDetector()
    for index, frame in enumerate(frames, first):
        distance = np.abs(times - times[0] - index / fps)
        row = points[np.argmin(distance)] if distance.min() <= reach else missing
        yield row, is_cut(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
