"""Alignment of audio and video frames: samples per frame, audio windows, and level normalisation."""

import numpy as np

from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS

SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 640, an exact division
WINDOW_RADIUS = 2  # the audio window of a frame: its own row of features and two on either side
SPEECH_RMS = 0.15  # target RMS of the loud frames, typical of speech recordings at a good level
MAX_GAIN = 20.0  # so that a silent recording stays silent


def count_frames(waveform: np.ndarray) -> int:
    """Number of video frames at 25 fps that a waveform (N,) at 16 kHz spans: ceil(N / 640), at least 1."""
    return max(1, -(-len(waveform) // SAMPLES_PER_FRAME))


def audio_windows(features: np.ndarray, indices: np.ndarray, radius: int = WINDOW_RADIUS) -> np.ndarray:
    """Audio windows of frames.

    Args:
        features: (T, D), audio features at 25 rows per second.
        indices: (B,), positions of the frames in rows; fractional for frame rates other than 25 fps, with linear
            interpolation between two rows.
        radius: rows on either side. Positions outside the features repeat the first or last row.

    Returns:
        (B, D, 2·radius + 1), columns t − radius … t + radius.
    """
    offsets = np.arange(-radius, radius + 1)
    positions = np.clip(np.asarray(indices)[:, None] + offsets, 0, len(features) - 1)
    lower = np.floor(positions).astype(int)
    rows = features[lower]
    if (positions != lower).any():
        fraction = (positions - lower).astype(features.dtype)[..., None]
        rows = rows + fraction * (features[np.minimum(lower + 1, len(features) - 1)] - rows)
    return rows.transpose(0, 2, 1)


def normalize_level(waveform: np.ndarray) -> np.ndarray:
    """The waveform (N,) at 16 kHz, scaled to a typical level of speech: the outputs of speech recognisers depend on
    the volume. The gain is MAX_GAIN at most."""
    frames = np.pad(waveform, (0, -len(waveform) % SAMPLES_PER_FRAME)).reshape(-1, SAMPLES_PER_FRAME)
    loud = np.percentile(np.sqrt(np.square(frames).mean(axis=1)), 95) if len(frames) else 0.0
    return waveform * np.float32(min(MAX_GAIN, SPEECH_RMS / max(loud, 1e-9)))
