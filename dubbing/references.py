"""Selection of the reference frames of a shot."""

import numpy as np

from data_processing.face.lips import mouth_opening
from data_processing.face.tracking import Landmarks


def choose_references(landmarks: Landmarks, start: int, stop: int, count: int) -> list[int]:
    """Frames of a shot with diverse mouth shapes and head poses, by deterministic farthest-point sampling.

    The first frame is the one nearest to the median of all descriptors, each further one is the frame farthest from
    those already chosen. Outliers, frames below the 2nd or above the 98th percentile of any descriptor, are not
    candidates as long as `count` others remain.

    Args:
        landmarks: of the video.
        start, stop: the frames [start, stop) of the shot, at least one with a detected face.
        count: number of reference frames N.

    Returns:
        N frame indices; some repeat if the shot has fewer frames.
    """
    frames = start + np.flatnonzero(landmarks.found[start:stop])
    points = landmarks.points[frames]
    eyes = points[:, 36:48].mean(axis=1)
    face = np.linalg.norm(points[:, 8] - eyes, axis=1)
    descriptors = np.stack(
        [
            2 * mouth_opening(points),  # mouth shape counts twice
            2 * np.linalg.norm(points[:, 54] - points[:, 48], axis=1) / face,
            (points[:, 30, 0] - points[:, [0, 16], 0].mean(axis=1)) / face,  # yaw
            (points[:, 30, 1] - eyes[:, 1]) / face,  # pitch
            (points[:, 45, 1] - points[:, 36, 1]) / face,  # roll
        ],
        axis=1,
    )
    low, high = np.percentile(descriptors, [2, 98], axis=0)
    inliers = ((descriptors >= low) & (descriptors <= high)).all(axis=1)
    if inliers.sum() >= count:
        frames, descriptors = frames[inliers], descriptors[inliers]
    chosen = [int(np.argmin(np.linalg.norm(descriptors - np.median(descriptors, axis=0), axis=1)))]
    while len(chosen) < count:
        distance = np.linalg.norm(descriptors[:, None] - descriptors[chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    return [int(frames[index]) for index in chosen]
