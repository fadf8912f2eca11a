"""The table of trackers: its measures of trackers whose errors are known."""

import cv2
import numpy as np
import pytest

from data_processing.media.frame import Frame, RgbFrame
from tests.tools.tracker_table import MESH_TO_68, error_under_known_motion, follow, measure, moved

DOTS = [(40, 40), (110, 60), (70, 120)]
NUM_FRAMES = 8


def dots() -> np.ndarray:
    """(160, 160, 3): one dot in each colour."""
    image = np.zeros((160, 160, 3), np.uint8)
    for channel, dot in enumerate(DOTS):
        plane = np.zeros((160, 160), np.uint8)
        image[..., channel] = cv2.GaussianBlur(cv2.circle(plane, dot, 6, 255, -1, cv2.LINE_AA), (0, 0), 1.5)
    return image


def centroids(frame: Frame, points: np.ndarray) -> np.ndarray:
    """An exact tracker: the dots, each repeated."""
    weights = np.clip(frame.rgb().astype(float) - 20, 0, None)
    y, x = np.mgrid[: frame.height, : frame.width]
    centres = [[(part * weights[..., k]).sum() / weights[..., k].sum() for part in (x, y)] for k in range(3)]
    return np.resize(centres, (68, 2))


def test_known_motion_is_that_of_the_images() -> None:
    images, matrices = zip(*moved(dots()), strict=True)
    found, _ = follow(centroids, images, np.zeros((68, 2)))
    assert np.ptp(found[:, :3], axis=0).min() > 2  # they move
    back = np.array([one @ matrix[:, :2].T + matrix[:, 2] for one, matrix in zip(found, matrices, strict=True)])
    assert np.abs(back[:, :3] - DOTS).max() < 0.2


def test_measures_of_known_errors() -> None:
    """The width of the face is 70 pixels. Every second frame the tracker is 0.7 pixels too far to the right."""
    frames = [RgbFrame(dots()) for _ in range(NUM_FRAMES)]
    truth = np.tile(np.resize(np.array(DOTS, float), (68, 2)), (NUM_FRAMES, 1, 1))
    truth[:, 66, 1] += np.arange(NUM_FRAMES)  # the mouth opens
    number = 0

    def tracker(frame: Frame, points: np.ndarray) -> np.ndarray:
        nonlocal number
        number += 1
        found = centroids(frame, points) + np.array([0.7 * (number % 2), 0])
        found[66, 1] += number - 1
        return found

    result = measure(tracker, frames, truth[0], truth)
    assert result["distance"] == pytest.approx(0.5, abs=0.05)
    assert result["distance less its mean"] == pytest.approx(0.5, abs=0.05)
    assert result["jitter"] == pytest.approx(2.0, abs=0.05)
    assert result["correlation of openings"] == pytest.approx(1)
    assert result["ms, small"] > 0 and "ms, large" not in result


def test_error_under_known_motion() -> None:
    """Of an exact tracker; of one with a constant error of 5 pixels; and of one that stays where it was."""
    start, motion = np.resize(np.array(DOTS, float), (68, 2)), list(moved(dots()))
    assert error_under_known_motion(centroids, motion, start) < 0.15
    assert error_under_known_motion(lambda frame, points: centroids(frame, points) + 5, motion, start) < 0.4
    assert error_under_known_motion(lambda frame, points: points, motion, start) > 1


def test_each_landmark_has_a_point_of_the_mesh() -> None:
    assert len(MESH_TO_68) == len(set(MESH_TO_68)) == 68 and max(MESH_TO_68) < 468
