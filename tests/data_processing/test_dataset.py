"""dataset: loading the clips of a prepared dataset, and errors that name the damaged clip."""

import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_processing import dataset
from data_processing.audio.features import extract_features
from data_processing.batches import TrainingBatches
from data_processing.dataset import load_clips, load_features
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from utils.errors import DatasetError, OutputError, UserError
from utils.files import read_jsonl


@pytest.fixture
def copied_dataset(prepared_dataset, tmp_path) -> Path:
    return Path(shutil.copytree(prepared_dataset, tmp_path / "prepared"))


@pytest.mark.slow
def test_load_clips(prepared_dataset):
    (bob,), (joe,) = (load_clips(prepared_dataset, split, 64, "whisper") for split in ("train", "val"))
    assert (bob.speaker, joe.speaker) == ("Bob", "Joe")
    path = prepared_dataset / "clips" / f"{bob.id}.mp4"
    assert np.array_equal(bob.frames, list(read_frames(path)))
    with np.load(path.with_suffix(".npz")) as arrays:
        assert np.array_equal(bob.features, arrays["features"])
    assert bob.frames.dtype == np.uint8 and bob.features.dtype == np.float32


@pytest.mark.parametrize("mouth_size", [32, 128])
def test_load_clips_at_another_mouth_size(prepared_dataset, mouth_size):
    (clip,) = load_clips(prepared_dataset, "train", mouth_size, "whisper")
    (original,) = load_clips(prepared_dataset, "train", 64, "whisper")
    assert clip.frames.shape == (40, mouth_size * 13 // 8, mouth_size * 5 // 4, 3)
    resized_back = cv2.resize(clip.frames[7], (80, 104), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resized_back.astype(int) - original.frames[7]).mean() < 6


@pytest.mark.slow
def test_other_features_are_extracted_from_the_audio_of_the_clips(copied_dataset, monkeypatch):
    (clip,) = load_clips(copied_dataset, "train", 64, "mel")
    waveform = load_audio(copied_dataset / "clips" / f"{clip.id}.mp4")
    np.testing.assert_array_equal(clip.features, extract_features(waveform, "mel", 40))
    assert len(clip.features) == len(clip.frames)
    assert clip.features.std() > 0.1
    monkeypatch.setattr(dataset, "extract_features", None)  # the second time they are read from files
    (again,) = load_clips(copied_dataset, "train", 64, "mel")
    np.testing.assert_array_equal(again.features, clip.features)
    (copied_dataset / "features" / "mel" / f"{clip.id}.npy").write_bytes(b"no array")
    with pytest.raises(DatasetError, match=rf"{clip.id}\.npy: cannot be read"):
        load_clips(copied_dataset, "train", 64, "mel")


def test_load_features_gives_the_features_of_load_clips(prepared_dataset):
    (clip,), (features,) = (load(prepared_dataset, "val", *args, "whisper") for load, args in LOADERS)
    np.testing.assert_array_equal(features, clip.features)


LOADERS = [(load_clips, (64,)), (load_features, ())]


@pytest.mark.parametrize(("load", "args"), LOADERS, ids=["load_clips", "load_features"])
def test_invalid_datasets_are_refused(copied_dataset, tmp_path, load, args):
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetError, match=r"other: not a prepared dataset \(no manifest\.jsonl\)") as caught:
        load(tmp_path / "other", "train", *args, "whisper")
    assert caught.value.path == tmp_path / "other"
    manifest = copied_dataset / "manifest.jsonl"
    manifest.write_text("".join(line for line in manifest.read_text().splitlines(True) if "Joe" not in line))
    with pytest.raises(DatasetError, match="no clip in the val split"):
        load(copied_dataset, "val", *args, "whisper")


def missing_video(path):
    path.unlink()


def missing_arrays(path):
    path.with_suffix(".npz").unlink()


def broken_arrays(path):
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 not really")


def missing_features(path):
    np.savez(path.with_suffix(".npz"), landmarks=np.zeros((40, 68, 2)))


def pickled_features(path):
    np.savez(path.with_suffix(".npz"), features=np.array([{}] * 40, object))


def fewer_features(path):
    np.savez(path.with_suffix(".npz"), features=np.zeros((39, 29)))


def fewer_landmarks(path):
    np.savez(path.with_suffix(".npz"), features=np.zeros((40, 29)), landmarks=np.zeros((39, 68, 2)))


@pytest.mark.parametrize(
    "damage",
    [
        missing_video,
        missing_arrays,
        broken_arrays,
        missing_features,
        pickled_features,
        fewer_features,
        fewer_landmarks,
    ],
)
def test_damaged_clip_is_named(copied_dataset, damage):
    (line,) = (line for line in read_jsonl(copied_dataset / "manifest.jsonl") if line["person"] == "Bob")
    damage(copied_dataset / "clips" / f"{line['id']}.mp4")
    with pytest.raises(UserError, match=line["id"]) as caught:
        load_clips(copied_dataset, "train", 64, "whisper")
    assert copied_dataset in caught.value.path.parents  # from which the command names the flag
    assert load_clips(copied_dataset, "val", 64, "whisper")


@pytest.mark.parametrize("num_frames", [39, 41])
def test_clip_with_another_number_of_frames_is_named(copied_dataset, num_frames):
    manifest = copied_dataset / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"num_frames": 40', f'"num_frames": {num_frames}'))
    with pytest.raises(DatasetError, match=rf"bob-\S+\.mp4: expected {num_frames} frames, found 40"):
        load_clips(copied_dataset, "train", 64, "whisper")


@pytest.mark.slow
def test_frames_that_do_not_fit_into_memory_are_memory_mapped(copied_dataset, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (in_memory,) = load_clips(copied_dataset, "train", 32, "whisper")
    assert not (copied_dataset / "decoded").exists()
    monkeypatch.setattr(dataset, "sysconf", lambda name: 100)  # 10 kB free
    (mapped,) = load_clips(copied_dataset, "train", 32, "whisper")
    assert "do not fit into" in caplog.text
    assert isinstance(mapped.frames, np.memmap) and np.array_equal(mapped.frames, in_memory.frames)
    batches = [TrainingBatches([clip], 2, 2, 1, seed=0)[0] for clip in (in_memory, mapped)]
    assert torch.equal(batches[0].target, batches[1].target)

    monkeypatch.setattr(dataset, "read_frames", None)  # decoded only once
    (again,) = load_clips(copied_dataset, "train", 32, "whisper")
    assert np.array_equal(again.frames, in_memory.frames)


def test_full_disk(copied_dataset, monkeypatch):
    monkeypatch.setattr(dataset, "sysconf", lambda name: 100)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset.np, "save", full)
    with pytest.raises(OutputError, match=r"npy: cannot be written: the disk is full"):
        load_clips(copied_dataset, "train", 32, "whisper")
    assert list((copied_dataset / "decoded" / "32").iterdir()) == []
