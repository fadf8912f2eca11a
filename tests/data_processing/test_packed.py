"""packed: arrays of all clips in few files."""

import errno
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from data_processing import packed
from data_processing.audio.framing import SAMPLES_PER_FRAME
from data_processing.dataset import load_clips
from data_processing.face.lips import lip_features
from data_processing.packed import digest, extract_missing, manifest_lines, open_packed
from tests.support.datasets import make_dataset
from utils.errors import DatasetError, OutputError, UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path):
    return make_dataset(tmp_path / "data", num_clips=7, num_frames=30, num_val=2)


def without_first_clip(data: Path) -> None:
    lines = manifest_lines(data, "train")[1:] + manifest_lines(data, "val")
    (data / "manifest.jsonl").write_text("\n".join(lines))


def test_rows_of_each_clip_are_those_of_its_own_file(data):
    split = open_packed(data, "train", "whisper")
    assert split.index["id"].tolist() == [f"clip-{k:06d}".encode() for k in range(5)]  # the manifest is not sorted
    assert split.index["speaker"].tolist() == [b"s0"] * 5
    assert (split.num_frames, split.num_blocks) == (150, 10)
    for clip in split.index:
        rows = slice(clip["first_frame"], clip["first_frame"] + clip["num_frames"])
        with np.load(data / "clips" / f"{clip['id'].decode()}.npz") as arrays:
            assert np.array_equal(split.features[rows], arrays["features"])
            assert np.array_equal(split.landmarks[rows], arrays["landmarks"])
    assert len(open_packed(data, "val", "whisper").landmarks) == 60


def test_lip_features_are_computed_clip_by_clip(data):
    lips = open_packed(data, "train", "lips")
    assert lips.features.shape == (150, 29)
    assert np.array_equal(lips.features[30:60], lip_features(lips.landmarks[30:60]))


def test_files_are_written_once(data, monkeypatch):
    before = open_packed(data, "train", "whisper")
    monkeypatch.setattr(packed, "_read_clip", None)
    again = open_packed(data, "train", "whisper")
    assert np.array_equal(again.features, before.features)


def test_a_changed_split_is_packed_again_and_the_other_is_not(data):
    train, val = (open_packed(data, split, "whisper").folder for split in ("train", "val"))
    without_first_clip(data)
    changed = open_packed(data, "train", "whisper")
    assert len(changed.index) == 4 and changed.folder != train
    assert sorted(path.name for path in (data / "packed").iterdir()) == sorted([changed.folder.name, val.name])


def test_old_files_stay_while_another_training_has_them_open(data):
    code = f"""
import sys
from pathlib import Path
from data_processing.packed import open_packed
split = open_packed(Path({str(data)!r}), "train", "whisper")
print(split.folder.name, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, stdin=PIPE, stdout=PIPE) as process:
        name = process.stdout.readline().strip()
        without_first_clip(data)
        first = open_packed(data, "train", "whisper").folder
        assert {path.name for path in (data / "packed").iterdir()} == {name, first.name}
        assert (data / "packed" / name / "landmarks.npy").exists()
        process.communicate("")
    assert open_packed(data, "train", "whisper").folder == first
    assert [path.name for path in (data / "packed").iterdir()] == [first.name]


def test_what_a_killed_process_did_not_finish_removing_is_removed(data):
    folder = open_packed(data, "train", "whisper").folder
    leftovers = [folder.with_suffix(".unused"), folder.with_name("train-0123456789abcdef.unused")]
    for leftover in leftovers:
        leftover.mkdir()
        (leftover / "frames-32.jpegs").touch()
    without_first_clip(data)
    changed = open_packed(data, "train", "whisper").folder
    assert list((data / "packed").iterdir()) == [changed]


def test_folder_that_is_removed_before_it_is_locked_is_packed_again(data, monkeypatch):
    """By a process that packs a changed manifest, between opening and locking of the index."""
    manifest = data / "manifest.jsonl"
    text, lock, opened = manifest.read_text(), packed._lock, []

    def lock_later(file, *, exclusive):
        if not opened:
            opened.append(file.name)
            without_first_clip(data)
            open_packed(data, "train", "whisper")
            manifest.write_text(text)
            assert not Path(file.name).exists()
        return lock(file, exclusive=exclusive)

    monkeypatch.setattr(packed, "_lock", lock_later)
    split = open_packed(data, "train", "whisper")
    assert len(split.index) == 5 and split.num_frames == 150
    assert opened == [str(split.folder / "index.npy")]
    assert [path.name for path in (data / "packed").iterdir()] == [split.folder.name]
    assert {path.name for path in split.folder.iterdir()} >= {"index.npy", "landmarks.npy"}


def test_dataset_on_a_disk_that_cannot_be_written_is_used_through_links(data, tmp_path, monkeypatch):
    def refused(path, *args, **kwargs):
        if data in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return mkdir(path, *args, **kwargs)

    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", refused)
    message = (
        "packed.*: Read-only file system; use a folder of your own with symbolic links to manifest.jsonl and clips"
    )
    with pytest.raises(OutputError, match=message) as caught:
        open_packed(data, "train", "whisper")
    assert str(caught.value).count("use a folder") == 1
    own = tmp_path / "own"
    own.mkdir()
    for name in ("manifest.jsonl", "clips"):
        (own / name).symlink_to(data / name)
    assert open_packed(own, "train", "whisper").num_frames == 150
    assert not (data / "packed").exists()


@pytest.mark.parametrize("part", ["landmarks.npy", "frames-32.jpegs", "phoneme"])
def test_files_that_belong_to_somebody_else_are_not_written_but_used_through_links(data, monkeypatch, part):
    """The folders are there, as somebody else has packed the dataset."""
    load_clips(data, "train", 32, "whisper", store_frames=True)
    (data / "features" / "phoneme").mkdir(parents=True)
    for path in data.glob(f"packed/*/{part}"):
        path.unlink()
    opened = Path.open

    def refused(path, mode="r", *args, **kwargs):
        if data in path.parents and mode not in ("r", "rb"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(packed, "load_audio", lambda path: np.zeros(30 * SAMPLES_PER_FRAME, np.float32))
    monkeypatch.setattr(packed, "extract_features", lambda waveform, kind, count: np.zeros((count, 4), np.float32))
    message = "cannot be written: Permission denied; use a folder of your own with symbolic links"
    with pytest.raises(UserError, match=f"{part}.*: {message}"):
        if part == "phoneme":
            extract_missing(data, manifest_lines(data), part, jobs=1)
        else:
            load_clips(data, "train", 32, "whisper", store_frames=True)


def test_interrupted_packing_leaves_no_incomplete_file(data, monkeypatch):
    read, calls = packed._read_clip, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(packed, "_read_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_packed(data, "train", "whisper")
    assert [path.name for path in (data / "packed").glob("*/*")] == ["index.npy"]
    assert open_packed(data, "train", "whisper").features[:, 0].tolist()[29:31] == [29, 1000]


def test_order_of_the_manifest_has_no_effect(data):
    lines = manifest_lines(data)
    (data / "manifest.jsonl").write_text("\n".join(reversed(lines)))
    assert manifest_lines(data) == lines
    assert digest(manifest_lines(data)) == digest(lines) != digest(lines[1:])


def test_incomplete_line_is_dropped_with_a_warning(data, caplog):
    with (data / "manifest.jsonl").open("a") as file:
        file.write('{"id": "clip-0000')
    assert len(manifest_lines(data, "train")) == 5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "incomplete" in record.message


def test_a_pickled_split_does_not_contain_the_arrays(data):
    split = open_packed(data, "train", "whisper")
    pickled = pickle.dumps(split)
    assert len(pickled) < 1000 < split.features.nbytes
    assert np.array_equal(pickle.loads(pickled).features, split.features)


def test_clips_of_different_lengths(data):
    lines = [json.loads(line) for line in manifest_lines(data)]
    for line, num_frames in zip(lines, (50, 20, 26, 25, 1), strict=False):
        line["num_frames"] = num_frames
    (data / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    index = packed._make_index(manifest_lines(data, "train"))
    assert index["first_frame"].tolist() == [0, 50, 70, 96, 121]
    assert index["first_block"].tolist() == [0, 2, 3, 5, 6]  # blocks of 25 frames


def test_folder_that_cannot_be_written(data):
    (data / "packed").write_text("a file")
    with pytest.raises(OutputError, match="packed"):
        open_packed(data, "train", "whisper")


def test_dataset_without_a_clip_names_the_list_of_reasons(data):
    (data / "manifest.jsonl").write_text("")
    with pytest.raises(DatasetError, match=f"^{data}: no clip; see rejected.jsonl in it for the reasons$"):
        manifest_lines(data)
    with pytest.raises(DatasetError, match="no clip in the val split; prepare more speakers"):
        manifest_lines(data, "val")


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_arrays_of_a_clip_that_are_cut_off_are_named(data, size):
    path = data / "clips" / "clip-000000.npz"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DatasetError, match=r"clip-000000\.npz: cannot be read"):
        open_packed(data, "train", "whisper")


def test_damaged_packed_file_is_named(data):
    folder = open_packed(data, "train", "whisper").folder
    (folder / "landmarks.npy").write_bytes(b"no array")
    with pytest.raises(DatasetError, match=r"landmarks\.npy: cannot be read"):
        open_packed(data, "train", "whisper")
