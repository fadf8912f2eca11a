"""TODO."""

import numpy as np

from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS

SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 640, exactly
WINDOW_RADIUS = 2  # the generator hears five rows: the frame's own and two on either side


def count_frames(waveform: np.ndarray) -> int:
    """Video frames at 25 fps that a 16 kHz waveform (N,) spans: ceil(N / 640), at least 1."""
    return max(1, -(-len(waveform) // SAMPLES_PER_FRAME))


def audio_windows(features: np.ndarray, indices: np.ndarray, radius: int = WINDOW_RADIUS) -> np.ndarray:
    """Audio audio_windows of the frames `indices` (B,): features (T, D) -> (B, D, 2·radius + 1), columns t ± radius.

    Before the first row and after the last, that row is repeated; between two rows, for frames of other rates than
    25 per second, they are blended. The default radius of 2 gives the audio window of a frame.
    """
    offsets = np.arange(-radius, radius + 1)
    at = np.clip(np.asarray(indices)[:, None] + offsets, 0, len(features) - 1)
    below = np.floor(at).astype(int)
    found = features[below]
    if (at != below).any():
        share = (at - below).astype(features.dtype)[..., None]
        found = found + share * (features[np.minimum(below + 1, len(features) - 1)] - found)
    return found.transpose(0, 2, 1)


def window(features: np.ndarray, t: int) -> np.ndarray:
    """Audio window of frame t: features (T, D) -> (D, 5), columns t−2 … t+2, edge rows repeated."""
    return audio_windows(features, np.array([t]))[0]


LOUD_RMS = 0.15  # what the loud video frames of a well-levelled speech recording measure
MAX_GAIN = 20.0  # a recording of nothing stays one


def normalize_level(waveform: np.ndarray) -> np.ndarray:
    """The recording at the usual loudness of speech: the recogniser's answers change with the volume."""
    frames = np.pad(waveform, (0, -len(waveform) % SAMPLES_PER_FRAME)).reshape(-1, SAMPLES_PER_FRAME)
    loud = np.percentile(np.sqrt(np.square(frames).mean(axis=1)), 95) if len(frames) else 0.0
    return waveform * np.float32(min(MAX_GAIN, LOUD_RMS / max(loud, 1e-9)))
