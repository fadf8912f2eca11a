"""Audio windows and level normalisation, in closed form."""

import numpy as np
import pytest

from data_processing.audio.framing import MAX_GAIN, SPEECH_RMS, audio_windows, normalize_level


def audio_window(features: np.ndarray, index: int) -> np.ndarray:
    return audio_windows(features, np.array([index]))[0]


def test_windows_repeat_the_edges() -> None:
    features = np.stack([np.arange(6.0), 10 + np.arange(6.0)], axis=1)  # (6, 2): row t is (t, 10 + t)
    np.testing.assert_array_equal(audio_window(features, 3), [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]])
    np.testing.assert_array_equal(audio_window(features, 0)[0], [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(audio_window(features, 5)[0], [3, 4, 5, 5, 5])
    batch = audio_windows(features, np.array([5, 1]))
    assert batch.shape == (2, 2, 5)
    np.testing.assert_array_equal(batch[0], audio_window(features, 5))
    np.testing.assert_array_equal(batch[1], audio_window(features, 1))


def test_window_of_a_single_row() -> None:
    np.testing.assert_array_equal(audio_window(np.full((1, 29), 3.0), 0), np.full((29, 5), 3.0))


def test_windows_between_rows_are_interpolated() -> None:
    rows = np.arange(20, dtype=np.float32)[:, None] ** 2
    assert np.array_equal(audio_windows(rows, np.array([3.0])), audio_windows(rows, np.array([3])))
    interpolated = audio_windows(rows, np.array([3.25]))[0, 0]
    expected = [0.75 * t**2 + 0.25 * (t + 1) ** 2 for t in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(interpolated, expected)
    assert audio_windows(rows, np.array([18.5]))[0, 0].tolist() == [
        16.5**2 + 0.25,
        17.5**2 + 0.25,
        18.5**2 + 0.25,
        361,
        361,
    ]


def test_level_of_speech_is_normalised() -> None:
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    for level in (0.01, 0.5):
        frames = normalize_level(level * noise).reshape(-1, 640)
        loud = np.percentile(np.sqrt(np.square(frames).mean(axis=1)), 95)
        assert loud == pytest.approx(SPEECH_RMS, rel=1e-3)
    np.testing.assert_allclose(normalize_level(1e-6 * noise), MAX_GAIN * 1e-6 * noise, rtol=1e-5)
    assert not normalize_level(np.zeros(1000, np.float32)).any()
    assert normalize_level(np.zeros(0, np.float32)).shape == (0,)
