"""TODO."""

import numpy as np

from data_processing.face.crop import FaceCrop
from data_processing.face.lips import mouth_opening
from data_processing.face.tracking import Landmarks, TrackChunk


def choose_references(landmarks: Landmarks, start: int, stop: int, count: int) -> list[int]:
    """Frames of a shot spread over mouth shapes and head poses: farthest-point sampling, the same every time.

    The first is the frame nearest the middle of all; each further one is the frame least like those chosen.
    Frames with unusual landmarks (the outer two per cent of any measure) are left to the side.
    """
    frames = start + np.flatnonzero(landmarks.found[start:stop])
    points = landmarks.points[frames]
    eyes = points[:, 36:48].mean(axis=1)
    face = np.linalg.norm(points[:, 8] - eyes, axis=1)
    measures = np.stack(
        [
            2 * mouth_opening(points),  # mouth shapes count twice
            2 * np.linalg.norm(points[:, 54] - points[:, 48], axis=1) / face,
            (points[:, 30, 0] - points[:, [0, 16], 0].mean(axis=1)) / face,  # yaw
            (points[:, 30, 1] - eyes[:, 1]) / face,  # pitch
            (points[:, 45, 1] - points[:, 36, 1]) / face,  # roll
        ],
        axis=1,
    )
    low, high = np.percentile(measures, [2, 98], axis=0)
    usual = ((measures >= low) & (measures <= high)).all(axis=1)
    if usual.sum() >= count:
        frames, measures = frames[usual], measures[usual]
    chosen = [int(np.argmin(np.linalg.norm(measures - np.median(measures, axis=0), axis=1)))]
    while len(chosen) < count:
        distance = np.linalg.norm(measures[:, None] - measures[chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    return [int(frames[index]) for index in chosen]


def shot_references(
    stretch: TrackChunk, shot: tuple[int, int], count: int, radius_px: float, mouth_size: int
) -> list[tuple[int, FaceCrop]]:
    """Frames and their crops to take as references of a shot, rows [first, last) of the stretch's landmarks."""
    known = max(shot[0], stretch.start - stretch.offset), shot[1]  # live frames before are gone
    points = stretch.landmarks.points
    return [
        (stretch.offset + row, FaceCrop.from_landmarks(points[row], radius_px, mouth_size))
        for row in choose_references(stretch.landmarks, *known, count)
    ]
