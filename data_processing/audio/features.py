"""Audio features: 16 kHz waveform -> (T, D) at 25 rows per second, one row per video frame.

- "whisper": output of an inner block of Whisper's encoder, D = 384. The default: it predicts the lips of held-out
  speakers best.
- "phoneme": probabilities of phonemes, grouped by their appearance on the lips, D = 29.
- "deepspeech": logits of DeepSpeech 0.1.0, as in the paper, D = 29.
- "mel": 0.2 s of mel spectrogram from each frame on, for the baseline Wav2Lip, D = 80 · 16.

To add audio features, register their dimensions in `FEATURE_DIMS` and call them in `extract_features`.
"""

import numpy as np

from data_processing.audio.framing import SAMPLES_PER_FRAME, count_frames, normalize_level
from utils.errors import ParameterError

FEATURE_DIMS = {"whisper": 384, "phoneme": 29, "deepspeech": 29, "mel": 80 * 16}


def extract_features(
    waveform: np.ndarray, name: str, num_frames: int | None = None, live: bool = False
) -> np.ndarray:
    """Audio features of a whole waveform.

    Args:
        waveform: (N,) float in [-1, 1], 16 kHz; video frame t at 25 fps spans samples 640·t to 640·(t+1).
        name: a key of `FEATURE_DIMS`.
        num_frames: number of rows; None for ceil(N / 640), at least 1. Extra rows are dropped at the end, missing
            rows repeat the last one.
        live: in less time, less exactly, of at most 10 s; for Whisper only.

    Returns:
        (T, D) float32.

    Raises:
        ParameterError: unknown name.
        WeightsError: the weights of the model cannot be obtained or are not valid.
    """
    # imported where they are used: each needs libraries of its own, which take time to load or are not installed
    if name == "whisper":
        from data_processing.audio.whisper import live_whisper_rows, whisper_rows

        padded = np.pad(normalize_level(waveform), (0, -len(waveform) % SAMPLES_PER_FRAME))
        rows = live_whisper_rows(padded) if live else whisper_rows(padded)
        features = rows.reshape(-1, 2, FEATURE_DIMS[name]).mean(axis=1)
    elif name == "phoneme":
        from data_processing.audio.phoneme import phoneme_log_posteriors, reduce_phonemes

        features = reduce_phonemes(phoneme_log_posteriors(normalize_level(waveform)))
    elif name == "mel":
        from data_processing.audio.mel import mel_features

        features = mel_features(waveform)
    elif name == "deepspeech":
        from data_processing.audio.deepspeech import deepspeech_features

        features = deepspeech_features(waveform)
    else:
        raise ParameterError("audio_features", f"expected one of {', '.join(FEATURE_DIMS)}, found {name!r}")
    if num_frames is None:
        num_frames = count_frames(waveform)
    missing = max(0, num_frames - len(features))
    return np.pad(features, ((0, missing), (0, 0)), mode="edge")[:num_frames]
