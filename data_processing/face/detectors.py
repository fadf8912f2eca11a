"""Frames -> 68 face landmarks per frame, smoothed, with gaps filled and shots found.

Backends: `dlib` (needs no connection, the default), `face_alignment` (more exact; fetches its weights at first
use) and `openface` (reads a CSV that OpenFace wrote, named like the video, beside it).
"""

import csv
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from data_processing.face.crop import sample_region
from data_processing.media.video_reader import FPS
from utils.errors import UserError
from utils.weights import weight_path

BACKENDS = ("dlib", "face_alignment", "openface")
DETECT_EVERY = 5  # frames between face detections; landmarks are tracked between them
CUT_LEVEL = 35.0  # mean grey-level change of a thumbnail that makes a shot cut
DETECTION_SIDES = (640, 1280)  # longer side in pixels of the reduced frame: first try, second try


# Boxes (K, 4) of faces, left, top, right, bottom, K > 0; function that finds the landmarks (68, 2) in one; frame
# (H, W, 3) uint8 RGB -> the number of the one meant, None if it is not among them.
FaceSelector = Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray], np.ndarray], int | None]


def largest_face(boxes: np.ndarray, fit: Callable, frame: np.ndarray) -> int:
    """The Choice where nobody chose."""
    return int(np.argmax(boxes[:, 2] - boxes[:, 0]))


def track_landmarks(
    frames: Iterator[np.ndarray],
    backend: str,
    path: Path | None = None,
    fps: Fraction | int = FPS,
    first: int = 0,
    choose: FaceSelector = largest_face,
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
        if choose is not largest_face:
            raise UserError("--face: OpenFace has chosen the face; expected --landmarks dlib or face_alignment")
        if path is None:
            raise UserError("--landmarks openface: expected a video file, found frames without one")
        return _with_openface(frames, path.with_suffix(".csv"), float(fps), first)
    raise UserError(f"--landmarks: expected one of {', '.join(BACKENDS)}, found {backend}")


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


def _with_dlib(frames: Iterator[np.ndarray], choose: FaceSelector) -> Iterator[tuple[np.ndarray, bool]]:
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


def _detect(gray: np.ndarray, frame: np.ndarray, choose: FaceSelector) -> np.ndarray | None:
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


def _with_face_alignment(frames: Iterator[np.ndarray], choose: FaceSelector) -> Iterator[tuple[np.ndarray, bool]]:
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
