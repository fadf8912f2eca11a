"""scripts.speech_detector."""

import numpy as np
import pytest

from data_processing.audio.silence import loudness, silent_frames
from data_processing.media.audio_io import save_wav
from scripts import speech_detector
from tests.support.commands import run_command_line
from tests.support.media import speech_like, text_file, tone_wav


def recording(seconds: float) -> np.ndarray:
    """Speech-like audio (N,) between pauses of 0.4 s with faint noise."""
    pause = 1e-4 * np.random.default_rng(0).standard_normal(6400)
    return np.concatenate([pause, speech_like(seconds - 0.8), pause]).astype(np.float32)


def test_spoken_frames_are_louder_than_music_by_the_ratio() -> None:
    speech = 0.1 * recording(6)
    music = np.sin(np.arange(100_000)).astype(np.float32)
    added = speech_detector.with_music(speech, music, 10, np.random.default_rng(1)) - speech
    spoken = np.sqrt(np.square(loudness(speech)[~silent_frames(speech)]).mean())
    assert spoken / np.sqrt(np.square(added).mean()) == pytest.approx(10 ** (10 / 20), rel=1e-3)


def test_regression_finds_a_linear_border() -> None:
    rng = np.random.default_rng(0)
    features = (5 + rng.normal(size=(20_000, 6)) * [1, 2, 3, 4, 5, 6]).astype(np.float32)
    silent = features[:, 0] + features[:, 3] > 10
    detector = speech_detector.fit(features, silent)
    assert ((features @ detector[:-1] + detector[-1] > 0) == silent).mean() > 0.99


def test_detector_of_clean_recordings(tmp_path, monkeypatch, capsys) -> None:
    """Those that are short, or whose level does not tell speech from pauses, are left out."""
    folder = tmp_path / "speech"
    folder.mkdir()
    save_wav(folder / "clean.wav", recording(6))
    save_wav(folder / "short.wav", recording(3))
    save_wav(folder / "noisy.wav", recording(6) + 0.05 * np.random.default_rng(0).standard_normal(96_000))
    text_file(folder / "notes.txt")
    (clean,) = speech_detector.clean_recordings(folder)
    assert len(clean) == 8 * 16_000

    rng = np.random.default_rng(0)

    def level_only(waveform: np.ndarray, name: str) -> np.ndarray:
        features = rng.standard_normal((len(waveform) // 640, 384))
        features[:, 0] = np.log10(loudness(waveform) + 1e-6)  # deviation about 1, like the others
        return features.astype(np.float32)

    monkeypatch.setattr(speech_detector, "extract_features", level_only)
    monkeypatch.setattr(speech_detector, "SPEECH_DETECTOR", tmp_path / "detector.npy")
    music = tone_wav(tmp_path / "music.wav", 2)
    run_command_line(speech_detector.main, "--speech", folder, "--music", music)
    detector = np.load(tmp_path / "detector.npy")
    assert detector.shape == (385,) and detector[0] < -np.abs(detector[1:-1]).max()
    assert capsys.readouterr().out.endswith("1 recordings, 800 frames\n")
