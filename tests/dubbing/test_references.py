"""Reference frames of a shot: diverse, deterministic, without outliers."""

import numpy as np
import pytest

from data_processing.face.tracking import Landmarks
from dubbing.references import choose_references


def made_points(opening: float = 0, smile: float = 0, centre: tuple[float, float] = (128, 128)) -> np.ndarray:
    """Synthetic landmarks (68, 2) of a face 120 pixels high; `opening` and `smile` move the lips, in pixels."""
    points = np.zeros((68, 2), np.float32)
    jaw = np.linspace(-50, 50, 17)
    points[:17] = np.stack([jaw, 60 * np.sqrt(1 - (jaw / 50) ** 2)], axis=1)
    points[17:27] = np.stack([np.linspace(-40, 40, 10), np.full(10, -35)], axis=1)
    points[27:31, 1] = [-20, -12, -5, 5]
    points[31:36] = np.stack([np.linspace(-10, 10, 5), np.full(5, 15)], axis=1)
    points[36:48] = np.stack([np.linspace(-30, 30, 12), np.full(12, -20)], axis=1)
    points[48:68, 1] = 30
    points[[48, 54], 0] = [-20 - smile, 20 + smile]
    points[62, 1], points[66, 1] = 30 - opening / 2, 30 + opening / 2
    return points + np.array(centre, np.float32)


SHAPES = [(0, 0), (6, 0), (14, 0), (3, 12), (0, -8)]  # closed, half open, open, smiling, pursed


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks of 100 frames, 20 of each mouth shape in random order with noise, and their shapes (100,)."""
    rng = np.random.default_rng(seed)
    shapes = rng.permutation(np.repeat(np.arange(len(SHAPES)), 20))
    points = np.stack([made_points(*SHAPES[shape]) for shape in shapes])
    return points + rng.normal(0, 0.2, points.shape).astype(np.float32), shapes


def landmarks_of(points: np.ndarray, found: np.ndarray | None = None) -> Landmarks:
    found = np.ones(len(points), bool) if found is None else found
    return Landmarks(points, found, [(0, len(points))])


@pytest.mark.parametrize("seed", range(5))
def test_every_mouth_shape_is_covered(seed):
    points, shapes = clusters(seed)
    chosen = choose_references(landmarks_of(points), 0, 100, 5)
    assert sorted(shapes[chosen]) == [0, 1, 2, 3, 4]
    assert all(type(index) is int for index in chosen)


def test_deterministic():
    points, _ = clusters(0)
    np.random.seed(1)
    first = choose_references(landmarks_of(points), 0, 100, 5)
    np.random.seed(2)
    assert choose_references(landmarks_of(points.copy()), 0, 100, 5) == first


def test_only_frames_of_the_shot_with_a_detected_face():
    points, shapes = clusters(0)
    found = shapes != 2
    chosen = choose_references(landmarks_of(points, found), 40, 100, 5)
    assert all(40 <= index < 100 and found[index] for index in chosen)
    assert len(set(chosen)) == 5
    assert set(shapes[chosen]) == {0, 1, 3, 4}


def test_detector_outliers_are_not_chosen():
    points, _ = clusters(0)
    outliers = [17, 60]
    points[outliers] = made_points(opening=80, smile=60)
    chosen = choose_references(landmarks_of(points), 0, 100, 5)
    assert not set(outliers) & set(chosen)
    assert len(set(chosen)) == 5


def test_frames_in_unusual_light_are_not_chosen():
    points, _ = clusters(0)
    levels = np.tile([120.0, 40.0], (100, 1))
    levels[:20] *= np.linspace(0, 0.9, 20)[:, None]  # fades in from black
    levels[50] = 230, 45  # a flash
    levels[90:, 1] *= np.linspace(0.7, 0, 10)  # fades to white
    unusual = {*range(15), 50, *range(91, 100)}
    chosen = choose_references(landmarks_of(points), 0, 100, 5, levels)
    assert len(set(chosen)) == 5 and not unusual & set(chosen)
    assert unusual & set(choose_references(landmarks_of(points), 0, 100, 5))


def test_none_of_a_short_shot():
    points = np.stack([made_points(opening=3 * index) for index in range(2)])
    assert choose_references(landmarks_of(points), 0, 2, 0) == []


@pytest.mark.parametrize("num_frames", [1, 3, 5])
def test_short_shots_use_every_frame(num_frames):
    points = np.stack([made_points(opening=3 * index) for index in range(20)])
    chosen = choose_references(landmarks_of(points), 7, 7 + num_frames, 5)
    assert len(chosen) == 5
    assert set(chosen) == set(range(7, 7 + num_frames))
