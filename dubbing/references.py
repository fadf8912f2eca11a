"""Selection of the reference frames of a shot, and of the frames that texture is taken from."""

from typing import NamedTuple

import numpy as np

from data_processing.face.lips import mouth_opening
from data_processing.face.tracking import Landmarks

MIN_CONTRAST = 0.7  # of reference frames, relative to the usual one of the shot
MAX_BRIGHTNESS_RATIO = 1.25  # of reference frames, to the usual one


class ReferenceCrop(NamedTuple):
    """A reference frame.

    image: (13S/8, 5S/4, 3) uint8 RGB face crop.
    points: (68, 2) landmarks in pixels of the crop.
    """

    image: np.ndarray
    points: np.ndarray


def choose_references(
    landmarks: Landmarks, start: int, stop: int, count: int, levels: np.ndarray | None = None
) -> list[int]:
    """Frames of a shot with diverse mouth shapes and head poses, by deterministic farthest-point sampling.

    The first frame is the one nearest to the median of all descriptors, each further one is the frame farthest from
    those already chosen. Frames in a light that is unusual in the shot, and outliers, frames below the 2nd or above
    the 98th percentile of any descriptor, are not candidates as long as `count` others remain.

    Args:
        landmarks: of the video.
        start, stop: the frames [start, stop) of the shot, at least one with a detected face.
        count: number of frames: N reference frames, or the candidates for texture.
        levels: (stop - start, 2) brightness and contrast of the face in each frame, None to ignore the light.

    Returns:
        `count` frame indices; some repeat if the shot has fewer frames.
    """
    if count == 0:
        return []
    frames = start + np.flatnonzero(landmarks.found[start:stop])
    if levels is not None:
        usual = _in_usual_light(levels[frames - start])
        if usual.sum() >= count:
            frames = frames[usual]
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


def _in_usual_light(levels: np.ndarray) -> np.ndarray:
    """(T,) bool: the frames in the light in which most of the face is seen best, from (T, 2) of `face_levels`."""
    brightness, contrast = levels.T
    clear = contrast >= MIN_CONTRAST * np.percentile(contrast, 75)
    change = np.abs(np.log((brightness + 1) / (np.median(brightness[clear]) + 1)))
    return clear & (change <= np.log(MAX_BRIGHTNESS_RATIO))
