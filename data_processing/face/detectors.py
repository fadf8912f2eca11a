"""Landmark detector backends: frames -> 68 face landmarks and shot cuts, frame by frame.

- `dlib`: the default; works offline.
- `face_alignment`: more accurate; downloads its weights on first use.
- `openface`: reads the CSV that OpenFace wrote for the video: same folder, same name, suffix .csv.

To add a backend, write a generator like `_dlib_landmarks` and register it in `BACKENDS` and `track_landmarks`.
"""

import csv
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from threading import Lock

import cv2
import numpy as np

from data_processing.media.frame import Frame
from data_processing.media.shots import FrameState, ShotDetector
from data_processing.media.video_reader import FPS
from utils.errors import FileError, MediaError, ParameterError
from utils.weights import weight_path

BACKENDS = ("dlib", "face_alignment", "openface")
DETECTION_INTERVAL = 5  # frames at 25 fps between face detections; in between, landmarks are tracked
LIVE_DETECTION_INTERVAL = 2  # the same of live frames, which wait for the next detection
DETECTION_SIDES = (640, 1280)  # longer side in pixels of the resized frame: first and second attempt
# In frames of 1280 to 3840 pixels, of seven faces that were scaled down in steps of 2 to 4 pixels, dlib found those
# wider than 0.034 to 0.054 of the longer side; at 640 pixels, six of them from 0.038 to 0.047 on.
SMALLEST_FACE = "it finds faces wider than about 1/20 of the longer side of the frame"
# Shifts of a face box, in its widths. dlib fits landmarks in each shifted box, and their mean is used, since errors
# depend on the box: half as many boxes have 1.4 times the noise (tests/tools/tracker_table.py). Smoothing averages
# over a time, so above 25 fps fewer per frame do.
BOX_SHIFTS = ((-0.04, 0), (0.04, 0), (0, -0.04), (0, 0.04))
FITTED_WIDTH = 256  # pixels of a face in which landmarks are fitted
VERIFIED_WIDTH = 90  # pixels of a face that the detector verifies; it finds none below 80
MISSING = np.full((68, 2), np.nan)
MAX_OPENFACE_VALUE = 1e5  # pixels or seconds; a larger number is damaged
_MODELS_LOCK = Lock()
logger = logging.getLogger(__name__)

# Selects one of the faces detected in a frame. Arguments: boxes (K, 4) with K > 0, as left, top, right, bottom; a
# function from one box to its landmarks (68, 2); the frame. Returns the index of the selected face, or None if it
# is not among them.
FaceSelector = Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray], Frame], int | None]


def largest_face(boxes: np.ndarray, fit: Callable[[np.ndarray], np.ndarray], frame: Frame) -> int:
    """The default `FaceSelector`."""
    return int(np.argmax(boxes[:, 2] - boxes[:, 0]))


def no_face_reason(num_frames: int, backend: str) -> str:
    """The reason of a NoFaceError after `num_frames` frames."""
    reason = f"no face detected in {num_frames} frame{'s' if num_frames != 1 else ''} ({backend})"
    return f"{reason}; {SMALLEST_FACE}" if backend == "dlib" else reason


def check_available(backend: str) -> None:
    """Fetch the weights of a backend that are fetched on first use.

    Raises:
        ParameterError: face_alignment cannot be used.
        WeightsError: the weights of dlib cannot be obtained.
    """
    if backend == "dlib":
        weight_path("landmarks68")
    elif backend == "face_alignment":
        _face_alignment_model()


def track_landmarks(
    frames: Iterator[Frame],
    backend: str,
    path: Path | None = None,
    fps: Fraction | int = FPS,
    first: int = 0,
    choose: FaceSelector = largest_face,
    resized: Collection[int] = (),
    live: bool = False,
) -> Iterator[tuple[np.ndarray, bool]]:
    """Landmarks of one face and shot cuts of consecutive frames, streamed.

    Half a second of frames and DETECTION_INTERVAL more are read at most before the first of them is returned; if
    `live`, 4 frames at 25 fps. dlib needs only their luma.

    Args:
        frames: of one size.
        backend: one of BACKENDS.
        path: the video file; required by openface only.
        fps: frame rate of the frames.
        first: index of the first frame in the video; used by openface only.
        choose: selects the face at every detection; openface has already selected one.
        resized: numbers of frames at which the stream changes its size, as `read_frames` collects them.
        live: return the frames soon: of shot boundaries only cuts are found, and dlib detects faces more often.

    Yields:
        For each frame its landmarks (68, 2) in source pixels (x, y), NaN without a face, and whether it starts a
        new shot. The frames of a dissolve that show two shots are a shot of their own, without a face.

    Raises:
        ParameterError: unknown backend, face_alignment cannot be used, or `choose` is given for openface.
        FileError, MediaError: the CSV of OpenFace is missing or damaged.
        WeightsError: the weights of dlib cannot be obtained.
    """
    shots = ShotDetector(fps, live)
    watched = ((frame, shots.add(frame, index in resized)) for index, frame in enumerate(frames))
    if backend == "dlib":
        interval = LIVE_DETECTION_INTERVAL if live else DETECTION_INTERVAL
        return _split_at_shots(_dlib_landmarks(watched, choose, float(fps) / FPS, interval), shots)
    if backend == "face_alignment":
        return _split_at_shots(_face_alignment_landmarks(watched, choose), shots)
    if backend == "openface":
        if choose is not largest_face:
            raise ParameterError("face", "OpenFace has already selected a face; use backend dlib or face_alignment")
        if path is None:
            raise ParameterError("landmarks", "openface requires a video file with a CSV; use dlib for live frames")
        return _split_at_shots(_openface_landmarks(watched, path.with_suffix(".csv"), float(fps), first), shots)
    raise ParameterError("landmarks", f"expected one of {', '.join(BACKENDS)}, found {backend}")


def _split_at_shots(
    tracked: Iterator[tuple[np.ndarray, bool]], shots: ShotDetector
) -> Iterator[tuple[np.ndarray, bool]]:
    """The results of a backend, with the cuts that `shots` finds in the same frames, which it has been given.

    A dissolve is a shot of its own, without a face, since it shows two faces at once. From frames without a face,
    such as a title, it is the beginning of the shot that it leads to.
    """
    waiting: deque[tuple[np.ndarray, bool]] = deque()
    had_face = in_dissolve = shows_two = False

    def split(points: np.ndarray, jumped: bool, state: FrameState) -> tuple[np.ndarray, bool]:
        nonlocal had_face, in_dissolve, shows_two
        starts = (state.starts or jumped) and not (in_dissolve and not shows_two)
        if state.blended and not in_dissolve:
            starts, shows_two = True, had_face
        in_dissolve = state.blended
        if not in_dissolve:
            had_face = not np.isnan(points).any()
        return (MISSING, starts) if in_dissolve and shows_two else (points, starts)

    for result in tracked:
        waiting.append(result)
        for state in islice(shots.decide(), len(waiting)):
            yield split(*waiting.popleft(), state)
    for result, state in zip(waiting, shots.decide(ended=True), strict=True):
        yield split(*result, state)


def _dlib_models():
    with _MODELS_LOCK:  # several faces may be tracked at once
        return _load_dlib_models()


@cache
def _load_dlib_models():
    import dlib

    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(weight_path("landmarks68")))


def _dlib_landmarks(
    frames: Iterator[tuple[Frame, bool]], choose: FaceSelector, rate: float, interval: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Track the face from frame to frame; the detector verifies it on every `interval`-th frame.

    If it does not, the frames since the last verification count as frames without a face, and the whole frame is
    searched. So are the next 2 `interval` frames until a face is found, then only every `interval`-th; and frames
    that change suddenly. A face detected far from the last one starts a new shot.

    Args:
        frames: each with whether it changes suddenly.
        choose: selects the face.
        rate: frame rate divided by 25 fps.
        interval: frames at 25 fps between two detections.
    """
    interval = max(1, round(interval * rate))
    num_boxes = min(len(BOX_SHIFTS), max(1, round(len(BOX_SHIFTS) / rate)))
    shifts = cycle(BOX_SHIFTS)
    pending: list[tuple[np.ndarray, bool]] = []  # results since the last verification
    points, last_box = None, None
    last_seen = 0
    for index, (frame, sudden) in enumerate(frames):
        jumped = False
        if sudden:
            yield from pending
            pending, points = [], None
        box = None if points is None else box_around(points)
        due = sudden or index % interval == 0 or (box is None and index - last_seen <= 2 * interval)
        if due and (box is None or not _is_face(frame.luma, box)):
            pending = [(MISSING, pending_jumped) for _, pending_jumped in pending]
            box = _detect(frame, choose)
            if box is not None and last_box is not None:
                jumped = bool(np.abs(box - last_box).max() > last_box[2] - last_box[0])
        points = None if box is None else fit_landmarks(frame, box, list(islice(shifts, num_boxes)))
        if box is not None:
            last_box, last_seen = box, index
        pending.append((MISSING if points is None else points, jumped))
        if due:
            yield from pending
            pending = []
    yield from pending


def box_around(points: np.ndarray) -> np.ndarray:
    """The box (left, top, right, bottom) that dlib's detector would give a face with these landmarks (68, 2)."""
    size = 1.07 * float((points.max(axis=0) - points.min(axis=0)).mean())
    centre = points.mean(axis=0) - [0, 0.06 * size]
    return np.concatenate([centre - size / 2, centre + size / 2])


def _surroundings(
    luma: np.ndarray, box: np.ndarray, reach: float, side: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """What is around the centre of a box as far as `reach` widths of the box, resized to (side, side).

    Returns:
        The image; its corner (2,) in source pixels; source pixels per pixel of it.
    """
    height, width = luma.shape
    distance = reach * (box[2] - box[0])
    # landmarks that leave the frame may have taken the box with them
    centre = np.clip((box[:2] + box[2:]) / 2, 1, [width - 1, height - 1])
    left, top = np.floor(centre - distance).astype(int).tolist()
    factor = max(1, int(2 * distance / side))  # averaged first, since bilinear resizing would skip pixels
    length = factor * ceil(2 * distance / factor)
    right, bottom = left + length, top + length
    image = luma[max(0, top) : bottom, max(0, left) : right]
    borders = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
    if any(borders):
        image = cv2.copyMakeBorder(image, *borders, cv2.BORDER_REPLICATE)
    if factor > 1:
        image = cv2.resize(image, (length // factor, length // factor), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    return image, np.array([left, top]), length / side


def _is_face(luma: np.ndarray, box: np.ndarray) -> bool:
    """Whether the detector finds a face of the expected size in a box; it searches the surroundings of the box
    only, at one scale."""
    detector, _ = _dlib_models()
    expected = VERIFIED_WIDTH
    image, _, _ = _surroundings(luma, box, 1.0, 2 * expected)
    return any(
        np.abs([b.width() - expected, b.center().x - expected, b.center().y - expected]).max() < 0.4 * expected
        for b in detector(image, 0)
    )


def _detect(frame: Frame, choose: FaceSelector) -> np.ndarray | None:
    """The box of the selected face in a whole frame; None without a face."""
    detector, _ = _dlib_models()
    luma = frame.luma
    for side in DETECTION_SIDES:
        scale = side / max(luma.shape)
        if scale < 1 or side > DETECTION_SIDES[0]:
            scale = min(scale, 2.0)
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            resized = cv2.resize(luma, None, fx=scale, fy=scale, interpolation=method)
        else:
            scale, resized = 1.0, np.ascontiguousarray(luma)
        detections = detector(resized, 0)
        if not len(detections):
            continue
        boxes = np.array([[b.left(), b.top(), b.right(), b.bottom()] for b in detections], float) / scale
        chosen = choose(boxes, lambda box: fit_landmarks(frame, box), frame)
        if chosen is not None:
            return boxes[chosen]
    return None


def fit_landmarks(frame: Frame, box: np.ndarray, shifts: Sequence[tuple[float, float]] = BOX_SHIFTS) -> np.ndarray:
    """Landmarks (68, 2) in a face box, averaged over shifted boxes.

    dlib returns whole pixels and depends on the exact box. The face is resized to FITTED_WIDTH pixels and the
    results are averaged, so both errors stay well below a pixel.

    Args:
        frame: the frame.
        box: left, top, right, bottom.
        shifts: of the box, (x, y) in its widths.
    """
    import dlib

    _, predictor = _dlib_models()
    image, corner, step = _surroundings(frame.luma, box, 0.75, 3 * FITTED_WIDTH // 2)
    black, white = frame.luma_range
    # dlib compares differences of brightness with thresholds, learned on images with black at 0 and white at 255
    image = cv2.convertScaleAbs(cv2.subtract(image, black), alpha=255 / (white - black))
    box = (box - np.tile(corner, 2)) / step
    total = np.zeros((68, 2))
    for shift in shifts:
        shifted = np.rint(box + np.tile(shift, 2) * (box[2] - box[0])).astype(int).tolist()
        total += [(part.x, part.y) for part in predictor(image, dlib.rectangle(*shifted)).parts()]
    return (total / len(shifts) + 0.5) * step + corner - 0.5  # dlib's coordinates refer to pixel centres


@cache
def _face_alignment_model():
    try:
        import face_alignment
    except ImportError:
        reason = "face_alignment is not installed (pip install face-alignment)"
        raise ParameterError("landmarks", reason) from None
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device=device)
    except OSError as error:  # it downloads its weights on first use
        reason = f"the weights of face_alignment cannot be downloaded ({error}); use dlib"
        raise ParameterError("landmarks", reason) from None


def _face_alignment_landmarks(
    frames: Iterator[tuple[Frame, bool]], choose: FaceSelector
) -> Iterator[tuple[np.ndarray, bool]]:
    """S3FD on every DETECTION_INTERVAL-th frame; 2DFAN4 on every frame, in the box tracked from the last frame."""
    model = _face_alignment_model()
    points = None
    for index, (frame, sudden) in enumerate(frames):
        keep = points is not None and not sudden and index % DETECTION_INTERVAL
        tracked = [box_around(points)] if keep else None
        detections = model.get_landmarks_from_image(frame.rgb(), detected_faces=tracked) or []
        points = None
        if detections:
            faces = np.asarray(detections, float)
            boxes = np.concatenate([faces.min(axis=1), faces.max(axis=1)], axis=1)

            def fit(box: np.ndarray, faces=faces, boxes=boxes) -> np.ndarray:
                return faces[np.abs(boxes - box).sum(axis=1).argmin()]

            chosen = choose(boxes, fit, frame)
            points = None if chosen is None else faces[chosen]
        yield MISSING if points is None else points, False


def _openface_landmarks(
    frames: Iterator[tuple[Frame, bool]], csv_path: Path, fps: float, first: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Rows of an OpenFace CSV, assigned to frames by their timestamps."""
    times, points = _read_openface(csv_path)
    max_distance_s = 2 / FPS  # from a frame to its row; beyond it the CSV has no row for the frame
    for index, _ in enumerate(frames, first):
        distance = np.abs(times - index / fps)
        row = points[np.argmin(distance)] if distance.min() <= max_distance_s else MISSING
        yield row, False


def _read_openface(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) in seconds after the first row, and landmarks (T, 68, 2), NaN without a face, of an OpenFace CSV.

    Damaged rows count as frames without a face; a warning counts them.

    Raises:
        FileError: there is no such file.
        MediaError: it has no rows, lacks a column, or every row is damaged.
    """
    if not path.is_file():
        raise FileError(path, "no such file; openface requires the CSV that OpenFace wrote for this video")
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    # line by line: a stray quote must not join the lines after it
    header, *rows = [_cells(line) for line in lines if line.strip()] or [[]]
    columns = ["timestamp", "success", *(f"{axis}_{k}" for k in range(68) for axis in "xy")]
    missing = [name for name in columns if not rows or name not in header]
    if missing:
        raise MediaError(path, f"not a valid CSV file of OpenFace: no rows or no column {', '.join(missing[:3])}")
    positions = [header.index(name) for name in columns]
    nothing = [""] * len(header)
    # a row with surplus cells is not what it seems
    rows = [nothing if any(row[len(header) :]) else row + nothing[len(row) :] for row in rows]
    values = np.array([[_number(row[position]) for position in positions] for row in rows])
    values[np.abs(values) > MAX_OPENFACE_VALUE] = np.nan
    times, success, points = values[:, 0], values[:, 1], values[:, 2:].reshape(-1, 68, 2)
    has_face = (success > 0) & np.isfinite(points).all(axis=(1, 2))
    damaged = ~np.isfinite(times) | ~(has_face | (success == 0))
    if damaged.all():
        raise MediaError(path, "not a valid CSV file of OpenFace: no row has a number in every cell")
    if num_damaged := np.count_nonzero(damaged):
        message = "%s: %d of %d rows are damaged; their frames count as frames without a face"
        logger.warning(message, path, num_damaged, len(rows), extra={"parameter": "landmarks"})
    points[damaged | ~has_face] = np.nan
    times = _filled(times)
    return times - times[0], points


def _filled(times: np.ndarray) -> np.ndarray:
    """Timestamps (T,) with those that are NaN interpolated, and extrapolated at the ends."""
    index, known = np.arange(len(times)), np.flatnonzero(np.isfinite(times))
    step = np.median(np.diff(times[known]) / np.diff(known)) if len(known) > 1 else 1 / FPS
    nearest = np.clip(index, known[0], known[-1])
    return np.interp(index, known, times[known]) + step * (index - nearest)


def _cells(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error:
        return []


def _number(cell: str) -> float:
    """The number in a cell; NaN if it is not a number."""
    try:
        return float(cell)
    except ValueError:
        return np.nan
