"""Identity embeddings of faces, by dlib's recognition network."""

import numpy as np

from utils.weights import weight_path

SAME_IDENTITY = 0.6  # distance of two embeddings up to which dlib's author counts two faces as one identity


class IdentityEncoder:
    """Embeds a face with dlib's recognition network.

    The dot product of two unit embeddings is the identity similarity CSIM, 1 for equal images. Most publications
    compute CSIM with ArcFace; values of different networks are not comparable.
    """

    def __init__(self) -> None:
        """Raises WeightsError if the weights cannot be obtained."""
        import dlib

        self.network = dlib.face_recognition_model_v1(str(weight_path("identity")))

    def __call__(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Unit embedding (128,) of a face: frame (H, W, 3) uint8 RGB, its landmarks (68, 2) in pixels."""
        vector = self.vector(frame, points)
        return vector / np.linalg.norm(vector)

    def vector(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Embedding (128,) before normalisation; its distances compare with SAME_IDENTITY."""
        import dlib

        parts = [dlib.point(round(float(x)), round(float(y))) for x, y in points]
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        box = dlib.rectangle(int(left), int(top), int(right), int(bottom))
        face = dlib.full_object_detection(box, parts)
        # dlib rejects array views, and frames of some widths are views.
        return np.array(self.network.compute_face_descriptor(np.ascontiguousarray(frame), face))
