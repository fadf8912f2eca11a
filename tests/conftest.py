"""Fixtures that several test files share, made once a run."""

from pathlib import Path

import pytest
from made_media import talking_portrait

from data_processing.prepare import Settings, find_sources, prepare

PORTRAIT_FRAMES = 40


@pytest.fixture(scope="session")
def portrait_clip(tmp_path_factory) -> Path:
    """40 frames, 256 x 256, 25 fps, with sound: a face that dlib finds and whose mouth moves."""
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
    prepare(find_sources([videos], folder / "prepared", person=None), folder / "prepared", settings, 10, jobs=1)
    return folder / "prepared"
