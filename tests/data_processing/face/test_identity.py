"""Identity embeddings."""

import numpy as np

from data_processing.face.identity import SAME_IDENTITY, IdentityEncoder
from data_processing.face.tracking import find_landmarks
from data_processing.media.video_reader import read_frames


def test_embeddings_of_one_identity(portrait_clip) -> None:
    frames, points = list(read_frames(portrait_clip, stop=2)), find_landmarks(portrait_clip, stop=2).points
    encoder = IdentityEncoder()
    first, second = (encoder.vector(frame, one) for frame, one in zip(frames, points, strict=True))
    assert first.shape == (128,)
    assert np.linalg.norm(first - second) < SAME_IDENTITY
    unit = encoder(frames[0], points[0])
    np.testing.assert_allclose(unit, first / np.linalg.norm(first))
    assert unit @ unit == 1 or abs(unit @ unit - 1) < 1e-12
