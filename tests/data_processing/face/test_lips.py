"""Measures of lips and chin: invariances and closed forms."""

import numpy as np

from data_processing.face.lips import lip_features, mouth_shape


def test_mouth_shape_is_independent_of_the_head_pose():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 5, (7, 68, 2)) + np.linspace(50, 150, 136).reshape(68, 2)
    angle = rng.uniform(-0.5, 0.5, 7)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(7, 2, 2)
    moved = 1.7 * np.einsum("tij,tkj->tki", turn, points) + rng.normal(0, 30, (7, 1, 2))
    shape = mouth_shape(points)
    assert shape.shape == (7, 50)
    np.testing.assert_allclose(mouth_shape(moved), shape, atol=1e-4)
    np.testing.assert_allclose(shape.mean(axis=0), 0, atol=1e-5)


def test_mouth_shape_of_a_lowered_lip():
    points = np.zeros((2, 68, 2))
    points[:, 36:42] = [-10, 0]
    points[:, 42:48] = [10, 0]  # distance between the eyes: 20
    points[1, 57] = [0, 4]  # the middle of the lower lip goes down by 4, 0.2 of that distance
    expected = np.zeros((2, 50))
    expected[:, 25 + 57 - 48] = [-0.1, 0.1]
    np.testing.assert_allclose(mouth_shape(points), expected, atol=1e-6)


MIRRORED = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), *range(45, 41, -1), 47, 46,
    *range(39, 35, -1), 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
]  # fmt: skip


def test_lip_features_of_a_mirrored_face_are_equal():
    rng = np.random.default_rng(0)
    face = rng.normal(0, 1, (9, 68, 2)) + np.linspace(50, 150, 136).reshape(68, 2)
    mirrored = (face * [-1, 1])[:, MIRRORED]
    features = lip_features(face)
    assert features.shape == (9, 29) and features.dtype == np.float32
    np.testing.assert_allclose(lip_features(mirrored), features, atol=1e-4)
    assert np.abs(features).max() <= 3 and features.std() > 0.1


def test_lip_features_of_an_opening_mouth():
    points = np.zeros((2, 68, 2))
    points[:, 36:42] = [-10, 0]
    points[:, 42:48] = [10, 0]  # distance between the eyes: 20
    points[1, [65, 66, 67]] = [0, 2]  # the inner edge of the lower lip goes down by 0.1 of that
    closed, opened = lip_features(points)
    # openings 66 − 62 and 67, 65 − 61, 63; the clip's mean is half way
    np.testing.assert_allclose(opened[[25, 27]], [1, 1], atol=1e-5)
    np.testing.assert_allclose(closed, -opened, atol=1e-5)
