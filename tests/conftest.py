"""Session fixtures that several test files share."""

from pathlib import Path

import pytest
import torch

from data_processing.clips import Settings
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
