"""Face crops for the official SyncNet, in closed form."""

import numpy as np

from data_processing.face.syncnet_crop import face_tracks, track_crop


def test_face_boxes_reach_from_the_forehead_to_the_chin() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([100, 200], [300, 400], (30, 68, 2))
    points[:, 0], points[:, 1] = (100, 200), (300, 400)  # corners of the box around the landmarks
    points[20] += 500  # one outlier, removed by the median
    tracks = face_tracks(points)
    # width 200, height 200 + 0.35 · 200
    np.testing.assert_allclose(tracks[6:-6], np.tile([200, 265, 135], (18, 1)))


def test_crop_matches_the_reference_pipeline() -> None:
    rows, columns = np.mgrid[:300, :400]
    frame = np.stack([rows / 2, columns / 2, 0 * rows], axis=2).astype(np.uint8)
    crop = track_crop(frame, np.array([200.0, 150.0, 80.0]))
    # rows y − half … y + 1.8 half, columns x ± 1.4 half
    assert crop.shape == (224, 224, 3)
    np.testing.assert_allclose(crop[[0, -1], 112, 0], [70 / 2, 293 / 2], atol=1)
    np.testing.assert_allclose(crop[112, [0, -1], 1], [88 / 2, 311 / 2], atol=1)
    beyond = track_crop(frame, np.array([200.0, 250.0, 80.0]))
    assert (beyond[-1] == 110).all()
