"""Face crops as the reference pipeline of the official SyncNet (LSE-D, LSE-C) makes them."""

import cv2
import numpy as np
from scipy.signal import medfilt

TRACK_SIZE = 224  # side of the crop in pixels
TRACK_CONTEXT = 0.4  # margin at the left, right and bottom, relative to half the side of the face box
TRACK_PADDING = 110  # grey level outside the frame


def face_tracks(landmarks: np.ndarray) -> np.ndarray:
    """Face boxes of one shot: landmarks (T, 68, 2) -> (T, 3), x and y of the centre and half the side, in pixels.

    The reference pipeline uses the boxes of the S3FD detector, which reach from the forehead to the chin. Landmarks
    end at the brows, so the boxes around them are extended upwards. As in the reference, a running median over 13
    frames smooths them.
    """
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    low[:, 1] -= 0.35 * (high[:, 1] - low[:, 1])
    tracks = np.concatenate([(low + high) / 2, (high - low).max(axis=1, keepdims=True) / 2], axis=1)
    return np.stack([medfilt(column, 13) for column in tracks.T], axis=1)


def track_crop(frame: np.ndarray, track: np.ndarray) -> np.ndarray:
    """The face crop of one frame, as in the reference pipeline.

    Args:
        frame: (H, W, 3) uint8.
        track: (3,), a row of `face_tracks`.

    Returns:
        (224, 224, 3) uint8, in the channel order of the frame.
    """
    x, y, half = track
    padding = int(half * (1 + 2 * TRACK_CONTEXT))
    half_width = half * (1 + TRACK_CONTEXT)
    padded = cv2.copyMakeBorder(
        frame, padding, padding, padding, padding, cv2.BORDER_CONSTANT, value=[TRACK_PADDING] * 3
    )
    x, y = x + padding, y + padding
    top, bottom = int(y - half), int(y + half * (1 + 2 * TRACK_CONTEXT))
    left, right = int(x - half_width), int(x + half_width)
    return cv2.resize(padded[top:bottom, left:right], (TRACK_SIZE, TRACK_SIZE))
