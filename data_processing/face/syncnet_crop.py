"""TODO."""

import cv2
import numpy as np
from scipy.signal import medfilt

TRACK_SIZE = 224
TRACK_CONTEXT = 0.4  # of half the face, on either side and below
TRACK_PADDING = 110  # grey, beyond the frame


def face_tracks(landmarks: np.ndarray) -> np.ndarray:
    """Where the faces of one shot, (T, 68, 2) landmarks, lie: (T, 3), x and y of the centre and half the side.

    The reference pipeline takes the boxes of the S3FD detector, from the forehead to the chin; here they are put
    around the landmarks, which end at the brows. Running medians of 13 frames, as there.
    """
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    low[:, 1] -= 0.35 * (high[:, 1] - low[:, 1])
    tracks = np.concatenate([(low + high) / 2, (high - low).max(axis=1, keepdims=True) / 2], axis=1)
    return np.stack([medfilt(column, 13) for column in tracks.T], axis=1)


def track_crop(frame: np.ndarray, track: np.ndarray) -> np.ndarray:
    """The face of a frame (H, W, 3) uint8 as the reference pipeline crops it: (224, 224, 3)."""
    x, y, half = track
    room = int(half * (1 + 2 * TRACK_CONTEXT))
    wide = half * (1 + TRACK_CONTEXT)
    padded = cv2.copyMakeBorder(frame, room, room, room, room, cv2.BORDER_CONSTANT, value=[TRACK_PADDING] * 3)
    x, y = x + room, y + room
    face = padded[int(y - half) : int(y + half * (1 + 2 * TRACK_CONTEXT)), int(x - wide) : int(x + wide)]
    return cv2.resize(face, (TRACK_SIZE, TRACK_SIZE))
