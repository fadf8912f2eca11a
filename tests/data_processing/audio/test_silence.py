"""Where a sound is silent, and what becomes of its features there."""

import numpy as np
import pytest

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows, count_frames
from data_processing.audio.silence import SilenceMouthClosure, closure_weight, silent_frames
from dubbing.audio_stream import AudioStream
from tests.support.media import speech_like
from utils.bundled import CLOSED_LIPS


def sound(*parts: tuple[float, float]) -> np.ndarray:
    """Noise of given (seconds, level in dB)."""
    rng = np.random.default_rng(4)
    return np.concatenate([rng.normal(0, 0.1 * 10 ** (db / 20), round(16000 * s)) for s, db in parts])


def test_silence_is_quiet_for_a_while() -> None:
    silent = silent_frames(sound((1, 0), (0.2, -60), (1, 0), (0.16, -60), (1, -25), (0.4, -40)))
    assert np.flatnonzero(silent).tolist() == [*range(25, 30), *range(84, 94)]
    assert not silent_frames(np.zeros(16000)).any()  # silent beside what?
    assert silent_frames(np.zeros(10)).shape == (0,)


def test_mouth_closes_in_silence_and_opens_before_speech() -> None:
    silent = np.zeros(40, bool)
    silent[:8] = silent[20:32] = silent[36:] = True
    found = closure_weight(silent)
    np.testing.assert_array_equal(found[:10], [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0])
    np.testing.assert_array_equal(found[20:32], [0, 0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    np.testing.assert_array_equal(found[36:], [0, 0, 0.25, 0.5])
    assert not closure_weight(np.zeros(5, bool)).any()
    assert closure_weight(np.ones(5, bool)).all()


def test_only_features_of_silence_are_moved() -> None:
    waveform = sound((0.4, 0), (0.8, -60), (0.41, 0))
    features = np.random.default_rng(0).standard_normal((41, 384)).astype(np.float32)
    moved = SilenceMouthClosure()(features, waveform) - features
    np.testing.assert_allclose(moved[15:25], np.tile(np.load(CLOSED_LIPS), (10, 1)), atol=1e-5)
    assert np.flatnonzero(moved.any(axis=1)).tolist() == [*range(12, 28)]


@pytest.mark.parametrize("level", [0, 1e-3])  # nothing, and a quiet room's noise at −60 dB of full scale
def test_windows_of_speech_are_as_they_were(level: float) -> None:
    pause = level * np.random.default_rng(0).standard_normal(24000)
    speech = 0.25 * np.random.default_rng(1).standard_normal(24000)
    waveform = np.concatenate([speech, pause, speech]).astype(np.float32)
    times = np.arange(112)
    plain = audio_windows(extract_features(waveform, "whisper"), times)
    found = AudioStream(iter([waveform]), "whisper").windows(times / 25)
    changed = np.flatnonzero((found != plain).any(axis=(1, 2)))
    assert (changed.min(), changed.max()) == (38, 74)  # of 37 or 38 to 74 in silence
    np.testing.assert_allclose((found - plain)[56], np.tile(np.load(CLOSED_LIPS), (5, 1)).T, atol=1e-4)


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """All features are 0, so that those of silence show how far the mouth is closed."""
    monkeypatch.setattr(
        "dubbing.audio_stream.extract_features",
        lambda sound, name: np.zeros((count_frames(sound), 384), np.float32),
    )


def how_far(windows: np.ndarray) -> np.ndarray:
    """(T, 5): how far the mouth is closed in windows (T, 384, 5) of a sound that is heard by the `deaf`."""
    closed_lips = np.load(CLOSED_LIPS)
    return np.einsum("tdk,d->tk", windows, closed_lips) / (closed_lips @ closed_lips)


def test_a_long_silence_stays_one(deaf: None) -> None:
    """Longer than what is heard at once: the mouth stays closed, however quiet all around is."""
    waveform = np.concatenate([speech_like(3), 1e-4 * np.random.default_rng(0).standard_normal(16000 * 14)])
    sound = AudioStream(iter(np.split(waveform.astype(np.float32), 170)), "whisper", block_s=0.4, after_s=0.6)
    np.testing.assert_allclose(how_far(sound.windows(np.arange(4 * 25, 16 * 25) / 25)), 1, atol=1e-4)


def test_what_is_silence_does_not_depend_on_where_one_begins(deaf: None) -> None:
    """Three minutes that grow quieter, heard from the start and from the third minute on, as when a dub goes on."""
    at = np.arange(180 * 16000)
    decibels = np.interp(at, [0, len(at)], [0, -20]) - 30 * (at // 8000 % 4 == 3)  # half a second every two seconds
    noise = np.random.default_rng(0).standard_normal(len(at))
    waveform = (0.1 * noise * 10 ** (decibels / 20)).astype(np.float32)

    def last_seconds(*times_s: float) -> np.ndarray:
        sound = AudioStream(iter(np.split(waveform, 180)), "whisper", 10, level_s=120)
        for time_s in times_s:
            sound.left(time_s, 0.2)
            heard = how_far(sound.windows(time_s + np.arange(250) / 25))
        return heard

    found = last_seconds(165)
    assert found.max() > 0.9
    np.testing.assert_allclose(found, last_seconds(20, 60, 100, 140, 165), atol=1e-4)
