"""Audio features of a stream against those of the whole waveform; mouth closure in silence."""

from collections.abc import Iterator

import numpy as np
import pytest

from data_processing.audio.features import extract_features
from data_processing.audio.framing import audio_windows, count_frames
from data_processing.audio.silence import closure_weight, silent_frames
from data_processing.media.audio_io import load_audio
from dubbing.audio_stream import AudioStream
from scripts.speech_detector import made_music, with_music
from tests.support.media import speech_like
from utils.bundled import CLOSED_LIPS, EXAMPLE_AUDIO


def split(waveform: np.ndarray, length: int = 1111) -> Iterator[np.ndarray]:
    """Consecutive chunks of a waveform."""
    return (waveform[start : start + length] for start in range(0, len(waveform), length))


@pytest.mark.parametrize("seconds", [0.03, 1.0, 2.03])
def test_short_audio_is_one_block(seconds: float) -> None:
    waveform = speech_like(seconds, 1).astype(np.float32)
    features = extract_features(waveform, "mel")
    stream = AudioStream(split(waveform), "mel")
    times = np.arange(len(features)) / 25
    for start in range(0, len(times), 8):
        windows = stream.windows(times[start : start + 8])
        assert np.array_equal(windows, audio_windows(features, np.arange(start, min(start + 8, len(times)))))


def test_long_audio_is_processed_in_blocks() -> None:
    waveform = speech_like(40, 2).astype(np.float32)
    features = extract_features(waveform, "mel")
    read = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal read
        for chunk in split(waveform):
            read += len(chunk)
            yield chunk

    stream = AudioStream(chunks(), "mel", block_s=2, after_s=1)
    windows = stream.windows(np.array([0.0, 0.04]))
    np.testing.assert_allclose(windows, audio_windows(features, np.array([0, 1])), atol=1e-3)
    assert read <= 3.2 * 16000
    times = np.arange(2, len(features)) / 25
    windows = np.concatenate([stream.windows(times[start : start + 7]) for start in range(0, len(times), 7)])
    np.testing.assert_allclose(windows, audio_windows(features, np.arange(2, len(features))), atol=1e-3)


def test_first_block_is_short() -> None:
    """Its features come soon; they and those after them are nearly those of the whole track."""
    waveform = np.resize(load_audio(EXAMPLE_AUDIO)[33280:57280], 12 * 16000)  # speech without a pause
    features = extract_features(waveform, "whisper")
    stream = AudioStream(split(waveform), "whisper", level_s=20, first_block_s=2)
    stream.windows(np.zeros(1))
    assert stream._extracted == 2 * 16000 and stream.remaining_s(0, 20) == 12
    found = stream.windows(np.arange(100) / 25)[:, :, 2]
    assert stream._extracted == 12 * 16000
    assert np.square(found - features[:100]).mean() < 0.001 * features.var()


def test_live_features_are_nearly_those_of_the_whole_track() -> None:
    """And at most 0.6 s more of it are read: two rows of the window, a block, what follows it, and a chunk."""
    waveform = load_audio(EXAMPLE_AUDIO)
    features = AudioStream(iter([waveform]), "whisper").windows(np.arange(140) / 25)[:, :, 2]
    read = 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal read
        for chunk in split(waveform, 160):
            read += len(chunk)
            yield chunk

    stream = AudioStream(chunks(), "whisper", block_s=0.24, after_s=0.24, live=True)
    found = []
    for row in range(140):
        found.append(stream.windows(np.array([row / 25]))[0, :, 2])
        assert read / 16000 - row / 25 <= 0.12 + 0.24 + 0.24 + 0.01
    assert np.square(found - features).mean() < 0.15 * features.var(axis=0).mean()


def test_remaining_time() -> None:
    stream = AudioStream(split(np.zeros(16000, np.float32)), "mel")
    assert stream.remaining_s(0, 0.2) == 0.2
    assert stream.remaining_s(0.9, 0.2) == pytest.approx(0.1)
    assert stream.remaining_s(1, 0.2) == 0
    assert stream.remaining_s(5, 0.2) == 0
    assert stream.windows(np.array([0.5])).shape == (1, 1280, 5)


@pytest.mark.slow
def test_blocks_without_requested_windows_are_skipped() -> None:
    """As when no face is in view for a long time; the features after that are the same."""
    waveform = speech_like(120, 2).astype(np.float32)
    features = extract_features(waveform, "mel")
    stream = AudioStream(split(waveform, 8000), "mel", 2, 1)
    num_extracted = 0
    extract_block = stream._extract_block

    def counted() -> None:
        nonlocal num_extracted
        num_extracted += 1
        extract_block()

    stream._extract_block = counted
    stream.windows(np.array([0.0]))
    for time_s in np.arange(0, 110, 0.04):
        stream.remaining_s(time_s, 0.2)
        assert len(stream._waveform) + sum(map(len, stream._unjoined)) < 40 * 16000
    times = np.arange(110 * 25, 111 * 25)
    np.testing.assert_allclose(stream.windows(times / 25), audio_windows(features, times), atol=1e-3)
    assert num_extracted < 15  # of 55 blocks


# --- silence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1e-3])  # digital silence, and noise at −60 dB of full scale
def test_windows_of_speech_are_unchanged(level: float) -> None:
    pause = level * np.random.default_rng(0).standard_normal(24000)
    speech = load_audio(EXAMPLE_AUDIO)[33280:57280]  # without a pause
    waveform = np.concatenate([speech, pause, speech]).astype(np.float32)
    times = np.arange(112)
    original = audio_windows(extract_features(waveform, "whisper"), times)
    windows = AudioStream(iter([waveform]), "whisper").windows(times / 25)
    changed = np.flatnonzero((windows != original).any(axis=(1, 2)))
    assert (changed.min(), changed.max()) == (38, 74)  # silence: frames 37 or 38 to 74
    np.testing.assert_allclose((windows - original)[56], np.tile(np.load(CLOSED_LIPS), (5, 1)).T, atol=1e-4)


def test_mouth_closes_between_words_in_music() -> None:
    """As without music, within some frames; and on music alone."""
    speech, rng = load_audio(EXAMPLE_AUDIO), np.random.default_rng(0)
    expected = closure_weight(silent_frames(speech))
    music = made_music(len(speech), rng)
    mixed = with_music(speech, music, 10, rng)
    assert not silent_frames(mixed).any()

    def weights(waveform: np.ndarray) -> np.ndarray:
        times = np.arange(len(expected))
        original = audio_windows(extract_features(waveform, "whisper"), times)
        return closure(AudioStream(split(waveform), "whisper").windows(times / 25) - original)[:, 2]

    found = weights(mixed)
    assert np.abs(found - expected).mean() < 0.1
    spoken = (expected == 0) & (np.roll(expected, 3) == 0) & (np.roll(expected, -3) == 0)
    assert found[spoken].max() < 0.3
    assert weights((0.3 * music).astype(np.float32)).mean() > 0.9


@pytest.fixture
def zero_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """All features are 0, so that windows contain the mouth closure only."""
    monkeypatch.setattr(
        "dubbing.audio_stream.extract_features",
        lambda waveform, name, live: np.zeros((count_frames(waveform), 384), np.float32),
    )


def closure(windows: np.ndarray) -> np.ndarray:
    """Closure weights (T, 5) in windows (T, 384, 5) of `zero_features`."""
    closed_lips = np.load(CLOSED_LIPS)
    return np.einsum("tdk,d->tk", windows, closed_lips) / (closed_lips @ closed_lips)


def test_silence_longer_than_a_block(zero_features: None) -> None:
    """The mouth stays closed, although the whole block is quiet."""
    waveform = np.concatenate([speech_like(3), 1e-4 * np.random.default_rng(0).standard_normal(16000 * 14)])
    stream = AudioStream(iter(np.split(waveform.astype(np.float32), 170)), "whisper", block_s=0.4, after_s=0.6)
    np.testing.assert_allclose(closure(stream.windows(np.arange(4 * 25, 16 * 25) / 25)), 1, atol=1e-4)


def test_silence_is_independent_of_the_start_time(zero_features: None) -> None:
    """Three minutes that become quieter, read from the start, and near the end only, as when a dub resumes."""
    sample = np.arange(180 * 16000)
    decibels = np.interp(sample, [0, len(sample)], [0, -20])
    decibels -= 30 * (sample // 8000 % 4 == 3)  # half a second every two seconds
    noise = np.random.default_rng(0).standard_normal(len(sample))
    waveform = (0.1 * noise * 10 ** (decibels / 20)).astype(np.float32)

    def last_seconds(*times_s: float) -> np.ndarray:
        stream = AudioStream(iter(np.split(waveform, 180)), "whisper", 10, level_s=120)
        for time_s in times_s:
            stream.remaining_s(time_s, 0.2)
            weights = closure(stream.windows(time_s + np.arange(250) / 25))
        return weights

    weights = last_seconds(165)
    assert weights.max() > 0.9
    np.testing.assert_allclose(weights, last_seconds(20, 60, 100, 140, 165), atol=1e-4)


@pytest.mark.parametrize("level", [0, 1e-4])
def test_mouth_stays_closed_without_speech(zero_features: None, level: float) -> None:
    """Even if all of the audio is silent, also live, where nothing is known of what comes."""
    waveform = (level * np.random.default_rng(0).standard_normal(16000 * 5)).astype(np.float32)
    for options in ({"level_s": 120}, {"block_s": 0.4, "after_s": 0.6}):
        stream = AudioStream(iter(np.split(waveform, 50)), "whisper", **options)
        np.testing.assert_allclose(closure(stream.windows(np.arange(125) / 25)), 1, atol=1e-4)
