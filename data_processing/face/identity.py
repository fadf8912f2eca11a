"""Who a face is, and which of several faces is meant."""

import numpy as np

from utils.weights import weight_path

SAME_PERSON = 0.6  # distance of two of dlib's vectors up to which its author takes them for one person's


class IdentityEncoder:
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
