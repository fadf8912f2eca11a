"""TODO."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_processing.face.detectors import FaceSelector, largest_face, track_landmarks
from data_processing.face.identity import SAME_PERSON, IdentityEncoder
from utils.errors import UserError


def face_selector(text: str) -> FaceSelector:
    """The face that `--face` names: largest, left, right, a place in the picture as "X,Y", or a picture of it.

    Raises:
        UserError: it is none of these, or the picture does not show one face.
    """
    if text == "largest":
        return largest_face
    if text in ("left", "right"):
        side = np.argmin if text == "left" else np.argmax
        return lambda boxes, fit, frame: int(side(boxes[:, 0] + boxes[:, 2]))
    if place := re.fullmatch(r"(\d+),(\d+)", text):
        wanted = np.array(place.groups(), float)
        return lambda boxes, fit, frame: int(
            np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - wanted, axis=1))
        )
    return _matching_photo(Path(text))


def _matching_photo(path: Path) -> FaceSelector:
    if not path.is_file():
        raise UserError(f"--face: expected largest, left, right, X,Y or a picture, found {str(path)!r}")
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UserError(f"--face: expected a picture, found another file: {path}")
    points, _ = next(track_landmarks(iter([picture]), "dlib"))
    if np.isnan(points).any():
        raise UserError(f"--face: no face found in {path}")
    identity = IdentityEncoder()
    wanted = identity.vector(picture, points)

    def choose(boxes: np.ndarray, fit: Callable[[np.ndarray], np.ndarray], frame: np.ndarray) -> int | None:
        distances = [np.linalg.norm(identity.vector(frame, fit(box)) - wanted) for box in boxes]
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= SAME_PERSON else None

    return choose
