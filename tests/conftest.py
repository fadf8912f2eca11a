"""Session fixtures that several test files share."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_processing.audio import whisper
from data_processing.clips import Settings
from data_processing.face import detectors
from data_processing.prepare import prepare
from data_processing.sources import find_sources
from models.checkpoint import save_model
from models.dinet import DINet, DINetConfig
from tests.support.media import speech_like_wav, talking_portrait

PORTRAIT_FRAMES = 40
MOUTH = 32  # S of the untrained generator
SECONDS = 2.03  # 32480 samples or 50.75 frames, rounded up to 51: more than the 40 of the clip


@pytest.fixture(scope="session")
def portrait_clip(tmp_path_factory) -> Path:
    """40 frames, 256 x 256, 25 fps, with audio: a face that dlib detects and whose mouth moves."""
    return talking_portrait(tmp_path_factory.mktemp("portrait") / "portrait.mp4", PORTRAIT_FRAMES)


@pytest.fixture(scope="session")
def prepared_dataset(tmp_path_factory, portrait_clip) -> Path:
    """A prepared dataset at mouth size 64 with two clips of 40 frames: Bob for training, Joe for validation."""
    folder = tmp_path_factory.mktemp("dataset")
    videos = folder / "videos"
    videos.mkdir()
    (videos / "MANIFEST.tsv").write_text("file\tperson\nbob.mp4\tBob\njoe.mp4\tJoe\n")
    for name in ("bob.mp4", "joe.mp4"):
        (videos / name).write_bytes(portrait_clip.read_bytes())
    settings = Settings(mouth_size=64, landmarks="dlib", audio_features="whisper")
    prepare(find_sources([videos], folder / "prepared", speaker=None), folder / "prepared", settings, 10, jobs=1)
    return folder / "prepared"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained generator with kernels so large that frame, references and audio all affect its output."""
    path = tmp_path_factory.mktemp("checkpoint") / "untrained.safetensors"
    torch.manual_seed(0)
    model = DINet(DINetConfig(384))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5)
    save_model(path, model, audio_features="whisper", mouth_size=MOUTH, info={})
    return path


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> Path:
    """Speech-like audio of SECONDS."""
    return speech_like_wav(tmp_path_factory.mktemp("speech") / "speech.wav", SECONDS, seed=3)


class Remembered:
    """A function of an array and other values, which is called once for the same ones."""

    def __init__(self, function: Callable[..., Any], max_results: int) -> None:
        self.function, self.max_results = function, max_results
        self.results: dict[tuple, Any] = {}

    def __call__(self, array: np.ndarray, *others: object) -> Any:
        key = (hashlib.blake2b(np.ascontiguousarray(array)).digest(), array.shape, array.dtype, *map(str, others))
        result = self.results.get(key)
        if result is None:  # another thread may clear the results meanwhile
            result = self.function(array, *others)
            if len(self.results) >= self.max_results:
                self.results.clear()
            self.results[key] = result
        return result


@pytest.fixture(scope="session")
def remembered_functions() -> list[Remembered]:
    """dlib's detector and landmark predictor, and Whisper's encoder."""
    return [*(Remembered(model, 20_000) for model in detectors._dlib_models()), Remembered(whisper._encode, 100)]


@pytest.fixture
def remembered_networks(remembered_functions, monkeypatch) -> None:
    """dlib and Whisper look at the same input once: most dubs of the tests are of the same frames and audio."""
    *dlib_models, encode = remembered_functions
    monkeypatch.setattr(detectors, "_dlib_models", lambda: dlib_models)
    monkeypatch.setattr(whisper, "_encode", lambda *args: encode(*args).clone())
