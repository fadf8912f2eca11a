"""Mel spectrogram against the golden file; its windows per frame."""

import numpy as np

from data_processing.audio.features import extract_features
from data_processing.audio.mel import mel_spectrogram
from tests.support.golden import golden_arrays


def test_mel_spectrogram_matches_the_authors() -> None:
    golden = golden_arrays("wav2lip_96")
    spectrogram = mel_spectrogram(golden["waveform"].numpy())
    np.testing.assert_allclose(spectrogram, golden["mel_spectrogram"], atol=1e-4)


def test_mel_rows_are_windows_of_the_spectrogram() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    rows, mel = extract_features(waveform, "mel"), mel_spectrogram(waveform)
    assert rows.shape == (25, 1280)
    np.testing.assert_array_equal(rows[7].reshape(80, 16), mel[:, 22:38])  # 7 / 25 s is column 22.4
    np.testing.assert_array_equal(
        rows[24].reshape(80, 16), np.pad(mel[:, 76:], ((0, 0), (0, 11)), constant_values=-4)
    )
