"""dataset: loading the clips of a prepared dataset, and errors that name the damaged clip."""

import gc
import logging
import pickle
import shutil
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_processing import dataset, packed
from data_processing.audio.features import extract_features
from data_processing.batches import TrainingBatches
from data_processing.dataset import fingerprint, load_clips, load_features, thin
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from tests.support.datasets import NUM_VIDEOS, make_dataset
from utils.errors import DatasetError, UserError
from utils.files import read_jsonl


@pytest.fixture
def copied_dataset(prepared_dataset, tmp_path) -> Path:
    ignored = shutil.ignore_patterns("packed")  # by other tests
    return Path(shutil.copytree(prepared_dataset, tmp_path / "prepared", ignore=ignored))


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
    monkeypatch.setattr(packed, "extract_features", None)  # the second time they are read from files
    (again,) = load_clips(copied_dataset, "train", 64, "mel")
    np.testing.assert_array_equal(again.features, clip.features)
    shutil.rmtree(copied_dataset / "packed")
    (again,) = load_clips(copied_dataset, "train", 64, "mel")
    np.testing.assert_array_equal(again.features, clip.features)
    shutil.rmtree(copied_dataset / "packed")
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
    with pytest.raises(DatasetError, match=rf"bob-\S+\.mp4: {num_frames} frames but 40 rows of landmarks"):
        load_clips(copied_dataset, "train", 64, "whisper")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """50 clips of five speakers for training, three for validation."""
    return make_dataset(tmp_path_factory.mktemp("made") / "data", num_clips=53, num_val=3)


def test_clips_are_sorted_and_found_by_number(made):
    clips = load_clips(made, "train", 32, "whisper")
    assert [clip.id for clip in clips] == [f"clip-{k:06d}" for k in range(50)]
    assert [clip.speaker for clip in clips[8:12]] == ["s0", "s0", "s1", "s1"]
    assert [clip.id for clip in clips[3:40:10][1:]] == ["clip-000013", "clip-000023", "clip-000033"]
    assert clips[-1].id == "clip-000049"
    for number in (0, 17, 49):
        clip, video = clips[number], number % NUM_VIDEOS
        assert (clip.features[:, 0] == np.arange(30) + 1000 * video).all()
        brightness = clip.frames[:].mean(axis=(1, 2, 3))
        assert np.abs(brightness - (5 * np.arange(30) + 20 * video)).max() < 3
    with pytest.raises(IndexError):
        clips[50]


def test_stored_frames_are_nearly_those_of_the_clips(made):
    exact, stored = (load_clips(made, "val", 32, "whisper", store)[1].frames[3:7] for store in (False, True))
    assert np.abs(exact.astype(int) - stored).max() < 5
    assert (load_clips(made, "val", 32, "whisper").packed.folder / "frames-32.jpegs").stat().st_size > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_equal_for_any_number_of_workers(made, workers):
    batches = TrainingBatches(load_clips(made, "train", 32, "whisper", store_frames=True), 4, 2, 6, seed=0)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(6), num_workers=workers)
    loaded = list(loader)  # before this process has decoded them
    for step, batch in enumerate(loaded):
        assert all(torch.equal(one, other) for one, other in zip(batch[:-1], batches[step][:-1], strict=True))
        assert batch.clip_ids == batches[step].clip_ids


def test_what_a_process_holds_does_not_grow_with_the_number_of_clips(tmp_path):
    num_files, num_bytes, pickled_bytes = [], [], []
    for num_clips in (50, 500):
        data = make_dataset(tmp_path / f"{num_clips}", num_clips, num_frames=20)
        load_clips(data, "train", 32, "whisper", store_frames=True)[0].frames[:]  # write the packed files
        gc.collect()
        files_before = len(list(Path("/proc/self/fd").iterdir()))
        tracemalloc.start()
        batches = TrainingBatches(load_clips(data, "train", 32, "whisper", store_frames=True), 4, 2, 3, seed=0)
        for step in range(3):
            batches[step]
        gc.collect()
        num_bytes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        num_files.append(len(list(Path("/proc/self/fd").iterdir())) - files_before)
        pickled_bytes.append(len(pickle.dumps(batches.clips)))
        del batches
    assert num_files[0] == num_files[1] < 10
    assert num_bytes[1] - num_bytes[0] < 450 * 50  # 8 bytes per clip are the cumulative probabilities
    assert pickled_bytes[1] < 1000


def test_fingerprint_depends_on_clips_and_splits_only(made, tmp_path):
    (tmp_path / "moved").mkdir()
    manifest = tmp_path / "moved" / "manifest.jsonl"
    lines = (made / "manifest.jsonl").read_text().splitlines()
    manifest.write_text("\n".join(reversed(lines)))
    assert fingerprint(manifest.parent) == fingerprint(made)
    manifest.write_text("\n".join(lines[1:]))
    assert fingerprint(manifest.parent) != fingerprint(made)
    manifest.write_text("\n".join(lines).replace('"split": "val"', '"split": "train"'))
    assert fingerprint(manifest.parent) != fingerprint(made)


def test_thin(made):
    clips = load_clips(made, "train", 32, "whisper")  # 50 of 30 frames
    assert [clip.id for clip in thin(clips, 1500)] == [clip.id for clip in clips]
    assert [clip.id for clip in thin(clips, 500)] == [clip.id for clip in clips[::3]]
    assert [clip.id for clip in thin(list(clips), 1499)] == [clip.id for clip in clips[::2]]


def test_frames_that_do_not_fit_into_memory_are_noted(made, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    load_clips(made, "train", 32, "whisper", store_frames=True)
    assert not caplog.records
    monkeypatch.setattr(dataset, "available_bytes", lambda: 1e6)
    load_clips(made, "train", 32, "whisper", store_frames=True)
    assert "about 0.00298 GB" in caplog.text and "do not fit into 0.001 GB of memory" in caplog.text
