"""Where a sound is silent, and what the lips are told there.

Driven by Whisper's features of silence many mouths stay half open: people do not always close theirs. How open lips
are can be read from the features linearly; moved along that direction, they close (figures: checkpoints/README.md).
"""

import numpy as np
from scipy.ndimage import binary_opening, distance_transform_cdt

from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS
from utils.bundled import CLOSED_LIPS

SILENCE_DB = 35.0  # below the loud parts
LOUD_PERCENTILE = 95  # of the frames' loudness: the loud parts
MIN_SILENCE = 5  # frames: 0.2 s
REACH = 2  # frames of silence next to speech that are left alone: the windows of speech are as they were
FADE = 3  # frames in which the mouth then closes, or opens


def loudness(waveform: np.ndarray) -> np.ndarray:
    """Root mean square of every whole frame at 25/s of a sound (N,) at 16 kHz: (N // 640,)."""
    size = SAMPLE_RATE // FPS
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    return np.sqrt(np.square(frames).mean(axis=1))


def loud_level(level: np.ndarray) -> float:
    """How loud the loud parts are, of `loudness`."""
    return float(np.percentile(level, LOUD_PERCENTILE)) if len(level) else 0.0


def silent_frames(waveform: np.ndarray, loud: float | None = None) -> np.ndarray:
    """(T,) bool, of a sound (N,) at 16 kHz: frames at 25/s more than SILENCE_DB below its loud parts for 0.2 s.

    `loud` is their level, where more is known than this sound.
    """
    level = loudness(waveform)
    loud = loud_level(level) if loud is None else loud
    return binary_opening(level < loud * 10 ** (-SILENCE_DB / 20), np.ones(MIN_SILENCE))


def closure_weight(silent: np.ndarray) -> np.ndarray:
    """How far the mouth is to be closed: silent frames (T,) bool -> (T,) in [0, 1].

    0 in speech and up to REACH frames from it, then rising to 1; at the ends of the sound nothing is opened for.
    """
    if not silent.any() or silent.all():
        return silent.astype(np.float32)
    # padded with silence, so that only speech counts as a border
    distance = distance_transform_cdt(np.pad(silent, len(silent), constant_values=True))[len(silent) : -len(silent)]
    return np.clip((distance - REACH) / (FADE + 1), 0, 1).astype(np.float32)


class SilenceMouthClosure:
    """Moves the features of a sound's silences to where lips close, as it is heard piece by piece.

    Args:
        beginning: (N,) at 16 kHz, by which it is known how loud the sound is; None to go by the loudest piece.
    """

    def __init__(self, beginning: np.ndarray | None = None) -> None:
        self._known = beginning is not None
        self._loud = loud_level(loudness(beginning)) if self._known else 0.0
        self._closed_lips = np.load(CLOSED_LIPS)

    def __call__(self, features: np.ndarray, waveform: np.ndarray) -> np.ndarray:
        """Whisper's features (T, 384) of a piece (N,) at 16 kHz, T = ceil(N / 640), as they were but in silence."""
        if not self._known:
            self._loud = max(self._loud, loud_level(loudness(waveform)))
        silent = silent_frames(waveform, self._loud)
        # a part of a frame at the end is as what comes before it
        silent = np.pad(silent, (0, len(features) - len(silent)), "edge" if len(silent) else "constant")
        return features + closure_weight(silent)[:, None] * self._closed_lips
