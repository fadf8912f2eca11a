"""The table of covers: what it draws, and its measures on dubs with known changes."""

import cv2
import numpy as np
import pytest

from data_processing.face.tracking import Landmarks
from tests.tools.cover_table import COVERS, compare, cover


def face(num_frames: int) -> tuple[list[np.ndarray], Landmarks]:
    """Grey frames with landmarks of a face: a mouth of 60 × 20 pixels at (150, 170)."""
    points = np.zeros((68, 2), np.float32)
    points[:] = (150, 120)
    points[29], points[33] = (150, 110), (150, 140)
    angles = np.linspace(np.pi, 3 * np.pi, 12, endpoint=False)
    points[48:60] = np.stack([150 + 30 * np.cos(angles), 170 + 10 * np.sin(angles)], axis=1)
    points[60:] = (150, 170)
    points[6:11] = (150, 210)
    frames = [np.full((300, 300, 3), 120, np.uint8) for _ in range(num_frames)]
    return frames, Landmarks(points[None].repeat(num_frames, 0), np.ones(num_frames, bool), [(0, num_frames)])


@pytest.mark.parametrize("kind", COVERS)
def test_what_is_drawn_is_in_the_mask(kind: str) -> None:
    frames, landmarks = face(8)
    covered, masks = cover(frames, landmarks, kind)
    assert max(mask[160:180, 120:180].max() for mask in masks) > 0.5  # it gets before the lips
    for frame, mask in zip(covered, masks, strict=True):
        assert (frame[mask == 0] == 120).all()
        assert frame[mask > 0.99].size == 0 or (frame[mask > 0.99] != 120).any(axis=-1).mean() > 0.5


def test_shares_in_closed_form() -> None:
    """The left half is covered. One dub keeps all of it, and loses a quarter of the right half of the lips."""
    frames, landmarks = face(3)
    mask = np.zeros((300, 300), np.float32)
    mask[:, :150] = 1
    changing = [frame + np.uint8(40) for frame in frames]
    keeping = [frame.copy() for frame in frames]
    lips = np.zeros((300, 300), np.uint8)
    cv2.fillConvexPoly(lips, np.rint(cv2.convexHull(landmarks.points[0, 48:60])).astype(np.int32), 1)
    rows, columns = np.nonzero((lips > 0) & (mask == 0))
    lost = np.arange(len(rows)) % 4 == 0
    for frame in keeping:
        frame[rows[~lost], columns[~lost]] += 40
    shares = compare(frames, [mask] * 3, landmarks, keeping, changing)
    assert shares["kept"].tolist() == [1, 1, 1]
    assert shares["kept_without"].tolist() == [0, 0, 0]
    assert shares["lost"] == pytest.approx(lost.mean())
