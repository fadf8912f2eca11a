"""Silence detection and mouth closure."""

import numpy as np
import pytest

from data_processing.audio.silence import (
    SilenceMouthClosure,
    closure_weight,
    loudness,
    silent_frames,
    with_noise_floor,
)
from tests.support.media import speech_like
from utils.bundled import CLOSED_LIPS, SPEECH_DETECTOR


def noise(*parts: tuple[float, float]) -> np.ndarray:
    """Noise at 16 kHz; parts of (seconds, level in dB)."""
    rng = np.random.default_rng(4)
    return np.concatenate([rng.normal(0, 0.1 * 10 ** (db / 20), round(16000 * s)) for s, db in parts])


def test_silence_is_quiet_for_a_minimum_time() -> None:
    silent = silent_frames(noise((1, 0), (0.2, -60), (1, 0), (0.16, -60), (1, -25), (0.4, -40)))
    assert np.flatnonzero(silent).tolist() == [*range(25, 30), *range(84, 94)]
    assert silent_frames(np.zeros(10)).shape == (0,)


def test_frames_without_speech_are_silent_however_loud() -> None:
    *direction, constant = np.load(SPEECH_DETECTOR)
    features = np.zeros((76, 384), np.float32)  # one more than complete frames, as of an incomplete one
    no_speech = -2 * constant * np.array(direction) / np.square(direction).sum()
    features[30:40] = features[60:64] = no_speech  # the second is too short
    waveform = noise((3.01, 0))
    assert np.flatnonzero(silent_frames(waveform, features=features)).tolist() == [*range(30, 40)]
    assert not silent_frames(waveform).any()


@pytest.mark.parametrize("loud", [None, 0.0])
def test_audio_without_speech_is_silent_throughout(loud: float | None) -> None:
    times = np.arange(5 * 16000) / 16000
    dither = noise((5, -50))  # 70 dB below full scale
    for waveform in (np.zeros(80000), dither, 0.01 * np.sin(2 * np.pi * 50 * times + 1)):
        assert silent_frames(waveform, loud).all()


def test_quiet_speech_is_no_silence() -> None:
    speech = speech_like(5)
    expected = silent_frames(speech)
    np.testing.assert_array_equal(silent_frames(speech / np.abs(speech).max() * 10 ** (-45 / 20)), expected)
    assert expected.mean() < 0.1


def test_speech_after_a_silent_beginning() -> None:
    """Its level is measured where it is."""
    close_mouth = SilenceMouthClosure(np.zeros(16000))
    waveform = np.concatenate([np.zeros(32000), noise((1, 0), (0.8, -60), (1, 0))])
    silent = close_mouth(np.zeros((len(waveform) // 640, 384), np.float32), waveform).any(axis=1)
    assert silent[:40].all() and not silent[50:75].any() and silent[80:90].all() and not silent[95:].any()


def test_mouth_closes_in_silence_and_opens_before_speech() -> None:
    silent = np.zeros(40, bool)
    silent[:8] = silent[20:32] = silent[36:] = True
    weight = closure_weight(silent)
    np.testing.assert_array_equal(weight[:10], [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0])
    np.testing.assert_array_equal(weight[20:32], [0, 0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    np.testing.assert_array_equal(weight[36:], [0, 0, 0.25, 0.5])
    assert not closure_weight(np.zeros(5, bool)).any()
    assert closure_weight(np.ones(5, bool)).all()


def test_only_features_in_silence_change() -> None:
    waveform = noise((0.4, 0), (0.8, -60), (0.41, 0))
    features = np.random.default_rng(0).standard_normal((41, 384)).astype(np.float32)
    change = SilenceMouthClosure()(features, waveform) - features
    np.testing.assert_allclose(change[15:25], np.tile(np.load(CLOSED_LIPS), (10, 1)), atol=1e-5)
    assert np.flatnonzero(change.any(axis=1)).tolist() == [*range(12, 28)]


def test_only_audio_without_speech_gets_noise() -> None:
    speech = np.concatenate([np.zeros(16000), noise((1, 0)), np.zeros(16000)]).astype(np.float32)
    assert with_noise_floor(speech) is speech
    silence = with_noise_floor(np.zeros(16000, np.float32))
    assert silence.dtype == np.float32 and loudness(silence).min() > 0 and silent_frames(silence).all()
