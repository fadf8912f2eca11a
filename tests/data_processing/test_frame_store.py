"""frame_store: frames that are decoded when indexed, and their JPEG store that processes share."""

import logging
import os
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread

import cv2
import numpy as np
import pytest

from data_processing import frame_store
from data_processing.frame_store import BLOCK_FRAMES, ENTRY, Frames, FrameStore
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from utils.errors import DatasetError, MediaError, OutputError
from utils.files import write_atomically

NUM_FRAMES = 60  # three blocks, the last of ten frames
SHAPE = (NUM_FRAMES, 52, 40, 3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Smooth noise that becomes brighter."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, 40, 52, crf=12) as writer:
        for index in range(NUM_FRAMES):
            noise = cv2.resize(rng.uniform(0, 100, (6, 5, 3)), (40, 52), interpolation=cv2.INTER_CUBIC)
            writer.write((noise.clip(0, 100) + 2 * index).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def truth(clip) -> np.ndarray:
    return np.stack(list(read_frames(clip)))


KEYS = [
    7,
    -1,
    slice(20, 30),
    slice(None),
    slice(None, None, 17),
    [59, 3, 3, 30],
    np.array([[1, 2], [40, 41]]),
    (slice(24, 27), slice(10, 20), slice(None, 5)),
    (5, slice(10, 20)),
    ([50, 0], slice(None), 3),
    slice(5, 5),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_frames_are_indexed_like_an_array(clip, truth, key):
    frames = Frames(clip, NUM_FRAMES, 32)
    assert frames.shape == truth.shape and frames.dtype == truth.dtype and len(frames) == NUM_FRAMES
    expected = truth[tuple(key) if isinstance(key, tuple) else key]
    assert frames[key].shape == expected.shape
    assert np.array_equal(frames[key], expected)


def test_index_out_of_range(clip):
    with pytest.raises(IndexError):
        Frames(clip, NUM_FRAMES, 32)[NUM_FRAMES]


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_stored_frames_are_nearly_those_of_the_clip_and_decoded_once(clip, truth, tmp_path, monkeypatch, system):
    if system == "windows":
        monkeypatch.delattr(os, "pread", raising=False)
    frames = Frames(clip, NUM_FRAMES, 32, FrameStore(tmp_path / "frames.jpegs", 3))
    first = frames[[59, 0, 30]]
    assert 0 < np.abs(first.astype(int) - truth[[59, 0, 30]]).mean() < 2
    whole = frames[:]
    assert np.array_equal(whole[[59, 0, 30]], first)
    monkeypatch.setattr(frame_store, "read_frames", None)
    assert np.array_equal(frames[:], whole)
    again = Frames(clip, NUM_FRAMES, 32, FrameStore(tmp_path / "frames.jpegs", 3))
    assert np.array_equal(again[:], whole)


def test_blocks_of_different_clips_are_kept_apart(clip, truth, tmp_path):
    store = FrameStore(tmp_path / "frames.jpegs", 6)
    small, large = Frames(clip, NUM_FRAMES, 32, store), Frames(clip, NUM_FRAMES, 32, store, first_block=3)
    for key in (0, 30):
        small[key], large[key]
    assert (store._positions > 0).tolist() == [True, True, False, True, True, False]
    assert np.array_equal(small[:], large[:])


def test_clips_of_another_size_are_resized(clip, truth):
    frames = Frames(clip, NUM_FRAMES, 64)[10:12]
    assert frames.shape == (2, 104, 80, 3)
    back = np.stack([cv2.resize(frame, (40, 52), interpolation=cv2.INTER_AREA) for frame in frames])
    assert np.abs(back.astype(int) - truth[10:12]).mean() < 2


def test_block_that_another_process_stored_meanwhile_is_not_stored_again(clip, tmp_path):
    path = tmp_path / "frames.jpegs"
    own, other = FrameStore(path, 3), FrameStore(path, 3)

    def decode() -> np.ndarray:
        other.read(0, [0], lambda: list(read_frames(clip, 0, BLOCK_FRAMES)))
        sizes.append(path.stat().st_size)
        return list(read_frames(clip, 0, BLOCK_FRAMES))

    sizes = []
    (first,) = own.read(0, [7], decode)
    assert path.stat().st_size == sizes[0] > 0
    assert np.array_equal(own.read(0, [7], None)[0], first)


def test_two_processes_that_start_together_share_the_positions(tmp_path, monkeypatch):
    """The second one comes while the first creates the file."""
    both_create, stores = Barrier(2), []

    def create(path, write):
        with suppress(BrokenBarrierError):
            both_create.wait(timeout=0.2)
        write_atomically(path, write)

    monkeypatch.setattr(frame_store, "write_atomically", create)
    threads = [Thread(target=lambda: stores.append(FrameStore(tmp_path / "frames.jpegs", 3))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[0]._positions[1] = 5
    assert stores[1]._positions.tolist() == [0, 5, 0]


@pytest.mark.parametrize("data", [b"", b"no array"], ids=["empty", "other"])
def test_damaged_positions_are_named(tmp_path, data):
    (tmp_path / "frames.npy").write_bytes(data)
    with pytest.raises(DatasetError, match=r"frames\.npy: cannot be read"):
        FrameStore(tmp_path / "frames.jpegs", 3)


def fill(clip: Path, store: FrameStore, start: int) -> None:
    frames = Frames(clip, NUM_FRAMES, 32, store)
    for index in range(NUM_FRAMES):
        frames[(start + index) % NUM_FRAMES]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_fill_one_store_together(clip, tmp_path, method):
    store = FrameStore(tmp_path / "frames.jpegs", 3)
    context = get_context(method)
    processes = [context.Process(target=fill, args=(clip, store, start)) for start in (0, 20, 40)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (store._positions > 0).all()
    alone = Frames(clip, NUM_FRAMES, 32, FrameStore(tmp_path / "alone.jpegs", 3))
    assert np.array_equal(Frames(clip, NUM_FRAMES, 32, store)[:], alone[:])


@pytest.mark.parametrize("part", ["header", "frames"])
def test_what_a_power_failure_lost_is_decoded_again(clip, tmp_path, part):
    path = tmp_path / "frames.jpegs"
    frames = Frames(clip, NUM_FRAMES, 32, FrameStore(path, 3))
    expected = frames[:]
    data = bytearray(path.read_bytes())
    first = 0 if part == "header" else BLOCK_FRAMES * ENTRY.itemsize + 100
    data[first : first + 2000] = bytes(2000)
    path.write_bytes(data[: len(data) - 100])  # and the end of the last block
    again = Frames(clip, NUM_FRAMES, 32, FrameStore(path, 3))
    assert np.array_equal(again[:], expected)


@pytest.mark.parametrize("failure", ["little is free", "writing fails"])
def test_on_a_full_disk_frames_are_decoded_each_time(clip, tmp_path, monkeypatch, caplog, failure):
    expected = Frames(clip, NUM_FRAMES, 32, FrameStore(tmp_path / "frames.jpegs", 3))[:]
    path = tmp_path / "full.jpegs"
    store = FrameStore(path, 3)
    if failure == "little is free":
        monkeypatch.setattr(frame_store, "MIN_FREE_BYTES", 1e18)
    else:
        store._file = open("/dev/full", "ab+", buffering=0)  # noqa: PTH123, SIM115
    frames = Frames(clip, NUM_FRAMES, 32, store)
    for _ in range(2):
        assert np.array_equal(frames[:], expected)
    assert path.stat().st_size == 0
    (record,) = caplog.records  # said once
    assert record.levelno == logging.WARNING and "full.jpegs" in record.message and record.path == path


def test_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="missing"):
        FrameStore(tmp_path / "missing" / "frames.jpegs", 3)


@pytest.mark.parametrize(("num_frames", "found"), [(NUM_FRAMES + 1, "60"), (NUM_FRAMES - 1, "60")])
def test_clip_with_another_number_of_frames_is_named(clip, num_frames, found):
    with pytest.raises(DatasetError, match=rf"clip\.mp4: expected {num_frames} frames, found {found}"):
        Frames(clip, num_frames, 32)[-1]


def test_missing_clip_is_named(tmp_path):
    with pytest.raises(MediaError, match=r"gone\.mp4: no such file"):
        Frames(tmp_path / "gone.mp4", 5, 32)[0]
