"""Measures of lips and chin from landmarks: mouth shape, mouth opening, and lip features."""

import numpy as np

LIPS = "lips"  # name of the lip features where a configuration names audio features
LIP_FEATURES = 29  # dimensions of the lip features


def mouth_shape(points: np.ndarray) -> np.ndarray:
    """Shape of lips and chin, independent of the head pose: landmarks (T, 68, 2) -> (T, 50) float32.

    Lips (48–67) and chin (6–10) relative to the nose base, rotated so that the eyes are level, in units of the
    distance between the eyes, minus their mean over the clip. First the 25 x coordinates, then the 25 y.
    """
    eyes = points[:, 42:48].mean(axis=1) - points[:, 36:42].mean(axis=1)
    distance = np.linalg.norm(eyes, axis=1)[:, None, None]
    x, y = np.moveaxis((points[:, [*range(48, 68), *range(6, 11)]] - points[:, 33:34]) / distance, 2, 0)
    cos, sin = (eyes / distance[:, 0]).T[..., None]
    shape = np.concatenate([cos * x + sin * y, cos * y - sin * x], axis=1)
    return (shape - shape.mean(axis=0)).astype(np.float32)


def mouth_opening(points: np.ndarray) -> np.ndarray:
    """Vertical distance of the inner lips divided by that of eyes and chin: landmarks (T, 68, 2) -> (T,)."""
    face = np.linalg.norm(points[:, 8] - points[:, 36:48].mean(axis=1), axis=1)
    return (points[:, 66, 1] - points[:, 62, 1]) / face


def lip_features(points: np.ndarray) -> np.ndarray:
    """Lip features, input of lip-driven generators: landmarks (T, 68, 2) -> (T, 29) float32 in [-3, 3].

    Heights, widths and openings of lips and chin from `mouth_shape`. Left and right are averaged, so a mirrored
    face has the same features.
    """
    shape = mouth_shape(points)
    x, y = (dict(zip([*range(48, 68), *range(6, 11)], part.T, strict=True)) for part in np.split(shape, 2, axis=1))
    pairs = [(48, 54), (49, 53), (50, 52), (60, 64), (61, 63), (67, 65), (59, 55), (58, 56), (7, 9), (6, 10)]
    heights = [(y[left] + y[right]) / 2 for left, right in pairs] + [y[middle] for middle in (51, 62, 66, 57, 8)]
    widths = [x[right] - x[left] for left, right in pairs]
    openings = [y[66] - y[62], y[57] - y[51], (y[67] + y[65] - y[61] - y[63]) / 2, y[8] - y[57]]
    return np.clip(20 * np.stack([*heights, *widths, *openings], axis=1), -3, 3).astype(np.float32)
