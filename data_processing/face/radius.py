"""The radius of the face crop, from landmarks (T, 68, 2) in source pixels.

The paper has one radius per shot: the maximum over its frames of a size that depends on chin and mouth. Here the
radius follows the scale of the face when the camera zooms or the speaker moves towards it, and one badly detected
frame has no influence. As long as the scale stays within RADIUS_TOLERANCE, the radius is constant, so that the crop
does not change its size with every frame.
"""

from fractions import Fraction

import numpy as np

from data_processing.media.video_reader import FPS

RADIUS_MARGIN = 1.05  # around the measured face
RIGID_LANDMARKS = [*range(4), *range(13, 17), *range(27, 36), 36, 39, 42, 45]  # speech moves none of them
RADIUS_PERCENTILE = 95  # over the frames of a shot; the maximum would be that of a badly detected frame
RADIUS_TOLERANCE = 0.025  # relative change of scale that the radius does not follow: head rotation changes as much
SMOOTHING = 5  # frames at 25 fps: standard deviation of the weights with which the scale is smoothed
SMOOTHING_REACH = 12  # frames at 25 fps on either side that are used to smooth the scale


def frame_radii(landmarks: np.ndarray, margin: float = RADIUS_MARGIN) -> np.ndarray:
    """Crop radius of each frame alone, as in the paper: landmarks (T, 68, 2) -> (T,) source pixels."""
    height = landmarks[:, :, 1].max(axis=1) - landmarks[:, 29, 1]
    mouth_width = np.abs(landmarks[:, 54, 0] - landmarks[:, 48, 0])
    return np.maximum(height, mouth_width) * margin / 2


def face_scales(landmarks: np.ndarray) -> np.ndarray:
    """Size of the face without its moving parts: landmarks (T, 68, 2) -> (T,) source pixels.

    It is the root mean square distance of the RIGID_LANDMARKS from their centroid.
    """
    rigid = landmarks[:, RIGID_LANDMARKS].astype(np.float64)
    scales = np.sqrt(np.square(rigid - rigid.mean(axis=1, keepdims=True)).sum(axis=2).mean(axis=1))
    return np.maximum(scales, 1e-6)


def radius_per_scale(landmarks: np.ndarray) -> float:
    """Ratio of crop radius to face scale for a shot, from landmarks (T, 68, 2)."""
    return float(np.percentile(frame_radii(landmarks) / face_scales(landmarks), RADIUS_PERCENTILE))


def crop_radii(landmarks: np.ndarray, fps: Fraction | float = FPS) -> np.ndarray:
    """Crop radius of every frame of a shot: landmarks (T, 68, 2) -> (T,) source pixels."""
    return ShotRadius(fps).extend(landmarks, 0, len(landmarks))


class ShotRadius:
    """The crop radii of one shot whose frames become known part by part.

    Args:
        fps: frame rate.
    """

    def __init__(self, fps: Fraction | float = FPS) -> None:
        self._frames = float(fps) / FPS  # per frame at 25 fps
        self._log_scale: float | None = None  # of the last frame
        self._ratio = 0.0

    def extend(self, landmarks: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The radii of further frames.

        Args:
            landmarks: (T, 68, 2) of consecutive frames of the shot: some before the new ones, the new ones, and
                those after them as far as they are known.
            start, stop: the new ones, which follow those of the last call.

        Returns:
            (T - start,) source pixels. Those of frames after `stop` are preliminary.
        """
        reach = max(1, round(SMOOTHING_REACH * self._frames))
        smooth = _smooth(np.log(face_scales(landmarks)), SMOOTHING * self._frames, reach)[start:]
        low, high = smooth - RADIUS_TOLERANCE, smooth + RADIUS_TOLERANCE
        current = np.median(smooth) if self._log_scale is None else self._log_scale
        log_scales = np.empty(len(smooth))
        for index in range(len(smooth)):
            log_scales[index] = current = min(max(current, low[index]), high[index])
        self._log_scale = float(log_scales[stop - start - 1])
        # a mouth that opens wider than before enlarges the crop slowly
        ratio = max(self._ratio, radius_per_scale(landmarks))
        ratios = np.linspace(self._ratio or ratio, ratio, stop - start + 1)[1:]
        self._ratio = ratio
        return np.exp(log_scales) * np.pad(ratios, (0, len(smooth) - len(ratios)), mode="edge")


def _smooth(values: np.ndarray, deviation: float, reach: int) -> np.ndarray:
    """Local linear regression of (T,) with Gaussian weights over ± `reach` values.

    It has no lag, and does not bend a steady change, also at the ends.
    """
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)

    def moment(power: int, signal: np.ndarray) -> np.ndarray:
        return np.correlate(np.pad(signal, reach), weights * offsets**power)

    count, centre, spread = (moment(power, np.ones(len(values))) for power in range(3))
    total, slope = moment(0, values), moment(1, values)
    determinant = count * spread - centre**2
    return np.where(
        determinant > 1e-9, (spread * total - centre * slope) / np.maximum(determinant, 1e-9), total / count
    )
