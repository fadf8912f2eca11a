"""Audio features "mel": windows of the mel spectrogram, the input of the baseline Wav2Lip."""

import librosa
import numpy as np
from scipy.signal import lfilter

from data_processing.audio.framing import count_frames
from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS
from models.wav2lip import MEL_BINS, MEL_COLUMNS

MEL_PER_SECOND = 80  # columns of the spectrogram per second


def mel_spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Wav2Lip's mel spectrogram: (N,) float in [-1, 1], 16 kHz -> (80, N // 200 + 1) float32 in [-4, 4]."""
    emphasised = lfilter([1, -0.97], [1], waveform)
    amplitudes = librosa.feature.melspectrogram(
        y=emphasised, sr=SAMPLE_RATE, n_fft=800, hop_length=200, n_mels=MEL_BINS, fmin=55, fmax=7600, power=1
    )
    decibels = 20 * np.log10(np.maximum(amplitudes, 1e-5)) - 20
    return np.clip(8 * (decibels + 100) / 100 - 4, -4, 4).astype(np.float32)


def mel_features(waveform: np.ndarray) -> np.ndarray:
    """(N,) float in [-1, 1], 16 kHz -> (T, 80 · 16) float32: for frame t the 16 columns from int(3.2·t) on.

    The waveform is padded with silence at its end.
    """
    starts = np.arange(count_frames(waveform)) * MEL_PER_SECOND // FPS
    mel = np.pad(mel_spectrogram(waveform), ((0, 0), (0, MEL_COLUMNS)), constant_values=-4)
    return mel[:, starts[:, None] + np.arange(MEL_COLUMNS)].transpose(1, 0, 2).reshape(len(starts), -1)
