"""Crop radius: the paper's against the golden file; following a zoom, ignoring badly detected frames."""

import numpy as np
import pytest

from data_processing.face.radius import (
    RADIUS_TOLERANCE,
    ShotRadius,
    crop_radii,
    face_scales,
    frame_radii,
)
from tests.support.golden import DATA

FACE = np.random.default_rng(0).normal(0, 40, (68, 2))


def shot_of(scales: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """The same landmarks (T, 68, 2) at different scales, with noise in pixels."""
    points = 500 + FACE * np.asarray(scales)[:, None, None]
    return points + np.random.default_rng(1).normal(0, noise, points.shape)


def test_radius_matches_the_authors():
    golden = np.load(DATA / "crop_radius.npz")
    accepted = golden["ok"]
    assert accepted.sum() == 45
    for points, margin, radius_px in zip(
        golden["landmarks"][accepted], golden["scale"][accepted], golden["radius_px"][accepted], strict=True
    ):
        radii = frame_radii(points.astype(float), margin)
        # the authors round down to whole pixels per frame, and then up to a multiple of 4
        assert (int(np.floor(radii).max()) // 4 + 1) * 4 == radius_px


def test_radius_of_a_frame_in_closed_form():
    points = np.zeros((2, 68, 2))
    points[:, 29, 1], points[:, 8, 1] = 100, [180, 200]
    points[:, 48, 0], points[:, 54, 0] = 50, 90
    assert np.allclose(frame_radii(points), [80 * 1.05 / 2, 100 * 1.05 / 2])
    points[0, 54, 0] = 250  # the width of the mouth is the maximum
    assert np.allclose(frame_radii(points), [200 * 1.05 / 2, 100 * 1.05 / 2])


def test_scale_does_not_depend_on_mouth_position_or_rotation():
    points = np.repeat(FACE[None], 3, axis=0)
    points[1, 48:68] += 30  # lips
    points[1, 4:13] += 30  # chin
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    points[2] = 2 * points[2] @ turn + 100
    assert face_scales(points) == pytest.approx(face_scales(points)[0] * np.array([1, 1, 2]))


def test_radius_is_constant_in_a_steady_shot():
    """Also while the head sways by 2 % and landmarks are inexact."""
    scales = 1 + 0.02 * np.sin(np.arange(200) / 9)
    radii = crop_radii(shot_of(scales, noise=0.5))
    assert np.ptp(radii) == 0
    assert radii[0] == pytest.approx(frame_radii(shot_of(np.ones(1)))[0], rel=0.03)


@pytest.mark.parametrize("growth", [2.0, 0.5])
@pytest.mark.parametrize("fps", [25, 60])
def test_radius_follows_a_zoom_smoothly(growth, fps):
    num_frames = 4 * fps
    points = shot_of(growth ** np.linspace(0, 1, num_frames), noise=0.3)
    radii = crop_radii(points, fps)
    assert np.abs(np.log(radii / frame_radii(points))).max() < RADIUS_TOLERANCE + 0.03
    steps = np.diff(np.log(radii)) * np.sign(np.log(growth))
    assert steps.min() >= 0  # never against the zoom
    assert np.abs(np.diff(steps)).max() < 1.1 * np.log(2) / num_frames  # nor by leaps


def test_badly_detected_frames_do_not_change_the_radius():
    points = shot_of(np.ones(100))
    expected = crop_radii(points)
    points[40, 8, 1] += 60  # the chin
    assert crop_radii(points) == pytest.approx(expected, rel=1e-6)


def test_wider_mouth_later_enlarges_the_radius_gradually():
    points = shot_of(np.ones(200))
    points[100:, 8, 1] = points[:, 29, 1].mean() + 200
    radius = ShotRadius()
    first = radius.extend(points[:100], 0, 100)
    second = radius.extend(points[76:], 24, 124)[:100]
    radii = np.concatenate([first, second])
    assert (radii[0], radii[-1]) == pytest.approx((frame_radii(points)[0], frame_radii(points)[-1]), rel=0.01)
    assert np.diff(radii).max() < 1.05 * (radii[-1] - radii[0]) / 100


def test_parts_of_a_shot_continue_each_other():
    points = shot_of(np.linspace(1, 2, 200), noise=0.3)
    radius = ShotRadius()
    parts = []
    for start in range(0, 200, 50):
        first, last = max(0, start - 24), min(200, start + 50 + 24)
        parts.append(radius.extend(points[first:last], start - first, start - first + 50)[:50])
    assert np.concatenate(parts) == pytest.approx(crop_radii(points), rel=2e-3)


def test_a_single_frame():
    assert crop_radii(shot_of(np.ones(1))) == pytest.approx(frame_radii(shot_of(np.ones(1))))
