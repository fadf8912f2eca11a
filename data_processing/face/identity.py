"""Who a face is, and which of several faces is meant."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_processing.errors import UserError
from data_processing.landmarks import Choice, largest, track
from data_processing.weights import weight_path

SAME_PERSON = 0.6  # distance of two of dlib's vectors up to which its author takes them for one person's


class Identity:
    """Who a face is, by dlib's recognition network.

    Called with a frame (H, W, 3) uint8 RGB and the landmarks (68, 2) of a face it gives a vector (128,) of length
    1: the similarity of two (CSIM) is their product, 1 for the same picture. Others mostly take ArcFace, so compare
    CSIM only with values by the same network.
    """

    def __init__(self) -> None:
        import dlib

        self.network = dlib.face_recognition_model_v1(str(weight_path("identity")))

    def __call__(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        vector = self.vector(frame, points)
        return vector / np.linalg.norm(vector)

    def vector(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The same before it is brought to length 1: distances up to SAME_PERSON are one person's."""
        import dlib

        parts = [dlib.point(round(float(x)), round(float(y))) for x, y in points]
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        box = dlib.rectangle(int(left), int(top), int(right), int(bottom))
        found = dlib.full_object_detection(box, parts)
        # dlib takes no views, which frames of some widths are
        return np.array(self.network.compute_face_descriptor(np.ascontiguousarray(frame), found))


def choice_of(text: str) -> Choice:
    """The face that `--face` names: largest, left, right, a place in the picture as "X,Y", or a picture of it.

    Raises:
        UserError: it is none of these, or the picture does not show one face.
    """
    if text == "largest":
        return largest
    if text in ("left", "right"):
        side = np.argmin if text == "left" else np.argmax
        return lambda boxes, fit, frame: int(side(boxes[:, 0] + boxes[:, 2]))
    if place := re.fullmatch(r"(\d+),(\d+)", text):
        wanted = np.array(place.groups(), float)
        return lambda boxes, fit, frame: int(
            np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - wanted, axis=1))
        )
    return _person_in(Path(text))


def _person_in(path: Path) -> Choice:
    if not path.is_file():
        raise UserError(f"--face: expected largest, left, right, X,Y or a picture, found {str(path)!r}")
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UserError(f"--face: expected a picture, found another file: {path}")
    points, _ = next(track(iter([picture]), "dlib"))
    if np.isnan(points).any():
        raise UserError(f"--face: no face found in {path}")
    identity = Identity()
    wanted = identity.vector(picture, points)

    def choose(boxes: np.ndarray, fit: Callable[[np.ndarray], np.ndarray], frame: np.ndarray) -> int | None:
        distances = [np.linalg.norm(identity.vector(frame, fit(box)) - wanted) for box in boxes]
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= SAME_PERSON else None

    return choose
