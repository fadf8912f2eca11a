"""Selection of one face among several: largest, left, right, nearest to a position, or the face on a photo."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_processing.face.detectors import FaceSelector, largest_face, no_face_reason, track_landmarks
from data_processing.face.identity import SAME_IDENTITY, IdentityEncoder
from data_processing.media.frame import Frame
from data_processing.media.video_reader import read_video
from utils.errors import LimitError, MediaError, NoFaceError, ParameterError
from utils.limits import DEFAULT_LIMITS, Limits


def face_selector(text: str, limits: Limits = DEFAULT_LIMITS) -> FaceSelector:
    """The selector for the parameter `face`.

    Args:
        text: "largest", "left", "right", a position in source pixels as "X,Y", or the path of a photo of the face.
        limits: sanity limits of the photo.

    Raises:
        ParameterError: it is none of these, or the file cannot be read.
        NoFaceError: no face detected in the photo.
        LimitError: the photo exceeds `limits.max_side_px`.
    """
    if text == "largest":
        return largest_face
    if text in ("left", "right"):
        side = np.argmin if text == "left" else np.argmax
        return lambda boxes, fit, frame: int(side(boxes[:, 0] + boxes[:, 2]))
    if match := re.fullmatch(r"(\d+),(\d+)", text):
        position = np.array(match.groups(), float)
        return lambda boxes, fit, frame: int(
            np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - position, axis=1))
        )
    return _photo_selector(Path(text), limits)


def _photo_selector(path: Path, limits: Limits) -> FaceSelector:
    """Selects the face with the identity of the largest face on a photo."""
    if not path.exists():
        reason = f"expected largest, left, right, X,Y or an image file, found {str(path)!r}"
        raise ParameterError("face", reason)
    try:
        photo = next(read_video(path, limits=limits))
    except LimitError:
        raise
    except MediaError as error:
        raise ParameterError("face", str(error)) from None
    points, _ = next(track_landmarks(iter([photo]), "dlib"))
    if np.isnan(points).any():
        raise NoFaceError(path, no_face_reason(1, "dlib"))
    encoder = IdentityEncoder()
    identity = encoder.vector(photo.rgb(), points)

    def select(boxes: np.ndarray, fit: Callable[[np.ndarray], np.ndarray], frame: Frame) -> int | None:
        image = frame.rgb()
        distances = [np.linalg.norm(encoder.vector(image, fit(box)) - identity) for box in boxes]
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= SAME_IDENTITY else None

    return select
