"""TODO."""

import numpy as np

from data_processing.audio.deepspeech import deepspeech_features
from data_processing.audio.framing import SAMPLES_PER_FRAME, count_frames, normalize_level
from data_processing.audio.mel import mel_features
from data_processing.audio.phoneme import phoneme_log_posteriors, reduce_phonemes
from data_processing.audio.whisper import whisper_rows
from models.wav2lip import MEL_BINS, MEL_COLUMNS
from models.whisper import WIDTH
from utils.errors import UserError

FEATURE_DIMS = {"whisper": WIDTH, "phoneme": 29, "deepspeech": 29, "mel": MEL_BINS * MEL_COLUMNS}


def extract_features(waveform: np.ndarray, name: str, num_frames: int | None = None) -> np.ndarray:
    """Audio features of a whole recording.

    waveform: (N,) float in [-1, 1], 16 kHz; video frame t at 25 fps lasts from sample 640·t to 640·(t+1).
    name: a key of `FEATURE_DIMS`. Returns (T, D) float32, T = ceil(N / 640), at least 1; with `num_frames`
    exactly that many rows, by dropping rows at the end or repeating the last one.
    Raises UserError for an unknown name and if the model cannot be had.
    """
    if name == "whisper":
        rows = whisper_rows(np.pad(normalize_level(waveform), (0, -len(waveform) % SAMPLES_PER_FRAME)))
        features = rows.reshape(-1, 2, WIDTH).mean(axis=1)
    elif name == "phoneme":
        features = reduce_phonemes(phoneme_log_posteriors(normalize_level(waveform)))
    elif name == "mel":
        features = mel_features(waveform)
    elif name == "deepspeech":
        features = deepspeech_features(waveform)
    else:
        raise UserError(f"audio features: expected one of {', '.join(FEATURE_DIMS)}, found {name!r}")
    if num_frames is None:
        num_frames = count_frames(waveform)
    missing = max(0, num_frames - len(features))
    return np.pad(features, ((0, missing), (0, 0)), mode="edge")[:num_frames]
