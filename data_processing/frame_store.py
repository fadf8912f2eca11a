"""Frames of the clips of a prepared dataset, decoded when they are asked for, and kept as JPEG for the next time.

A random frame of an H.264 clip costs the decoding of those before it. As JPEG it is read about 12 times as fast. It
then takes 11 % (S = 256) to 22 % (S = 64) of the bytes of a raw frame (docs/performance.md).
"""

import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from filelock import FileLock

from data_processing.media.video_reader import read_frames
from models.crop_layout import crop_size
from utils.errors import DatasetError, error_reason
from utils.files import output_errors, write_atomically

BLOCK_FRAMES = 25  # frames that are decoded and stored together: from one key frame of a clip to the next
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
MIN_FREE_BYTES = 5e9  # of the disk; with less, frames are no longer stored, but decoded each time
ENTRY = np.dtype([("num_bytes", "<u4"), ("crc32", "<u4")])  # of each frame of a block, before their JPEG data
KEPT_BLOCKS = 8  # decoded blocks that a process without a store holds

logger = logging.getLogger(__name__)


def jpeg_bytes(mouth_size: int) -> float:
    """About the size of a frame as JPEG; larger images have less detail per pixel."""
    return 5.4 / math.sqrt(mouth_size) * math.prod(crop_size(mouth_size))


class FrameStore:
    """JPEG frames of all clips of a split, in one file that all processes of a machine fill and read.

    The operating system keeps in memory, once for all processes, what fits: the blocks that were used last.

    Args:
        path: the file; created if it does not exist. Beside it, with suffix .npy, is the position of each block.
        num_blocks: number of blocks of all clips.

    Raises:
        OutputError: a file cannot be written.
        DatasetError: the positions cannot be read.
    """

    def __init__(self, path: Path, num_blocks: int) -> None:
        self.path, self.num_blocks = path, num_blocks
        with output_errors(path):
            self._file = path.open("ab+", buffering=0)
            positions = path.with_suffix(".npy")
            with self._lock():  # of two that start together, only one creates the positions
                if not positions.exists():
                    write_atomically(positions, lambda file: np.save(file, np.zeros(num_blocks, np.uint64)))
        self._positions = map_array(positions, "r+")  # in the file, plus 1; 0 if the block is not stored
        self._full = False

    def __reduce__(self) -> tuple:  # a process that is not forked opens the file itself
        return FrameStore, (self.path, self.num_blocks)

    def read(self, block: int, numbers: Sequence[int], decode: Callable[[], np.ndarray]) -> list[np.ndarray]:
        """K frames of a block, (H, W, 3) uint8 RGB; they do not depend on whether the block was stored before.

        Args:
            block: number of the block.
            numbers: of the K frames, from the beginning of the block.
            decode: returns all frames of the block; called if it is not stored.
        """
        entry = int(self._positions[block])
        jpegs = self._load(entry - 1, numbers) if entry else None
        if jpegs is None:
            encoded = [cv2.imencode(".jpg", frame[..., ::-1], JPEG)[1].tobytes() for frame in decode()]
            self._save(block, encoded, entry)
            jpegs = [encoded[number] for number in numbers]
        return [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB) for jpeg in jpegs]

    def _load(self, position: int, numbers: Sequence[int]) -> list[bytes] | None:
        """JPEG data of frames of a block; None if they did not reach the disk before a power failure."""
        header_bytes = BLOCK_FRAMES * ENTRY.itemsize
        header = self._read_at(position, header_bytes)
        if len(header) < header_bytes:
            return None
        entries = np.frombuffer(header, ENTRY)
        starts = position + header_bytes + np.cumsum(entries["num_bytes"]) - entries["num_bytes"]
        jpegs = [self._read_at(int(starts[number]), int(entries["num_bytes"][number])) for number in numbers]
        complete = all(
            jpeg and zlib.crc32(jpeg) == entries["crc32"][number]
            for jpeg, number in zip(jpegs, numbers, strict=True)
        )
        return jpegs if complete else None

    def _read_at(self, position: int, num_bytes: int) -> bytes:
        if hasattr(os, "pread"):  # which does not move the position that forked processes share
            return os.pread(self._file.fileno(), num_bytes, position)
        with self.path.open("rb") as file:  # Windows
            file.seek(position)
            return file.read(num_bytes)

    def _lock(self) -> FileLock:
        return FileLock(self.path.with_suffix(".lock"))  # a new one, since locks cannot be inherited

    def _save(self, block: int, jpegs: list[bytes], entry: int) -> None:
        """Append a block to the file, unless the disk is full or another process has done so.

        entry: the block's entry in the positions before it was decoded.
        """
        if self._full:
            return
        entries = np.zeros(BLOCK_FRAMES, ENTRY)
        entries[: len(jpegs)] = [(len(jpeg), zlib.crc32(jpeg)) for jpeg in jpegs]
        data = entries.tobytes() + b"".join(jpegs)
        try:
            with self._lock():
                if self._positions[block] != entry:
                    return
                position = self._file.seek(0, os.SEEK_END)
                if shutil.disk_usage(self.path).free - len(data) < MIN_FREE_BYTES:
                    raise OSError(f"less than {MIN_FREE_BYTES / 1e9:g} GB of the disk are free")
                if self._file.write(data) < len(data):
                    raise OSError("the disk is full")
                self._positions[block] = position + 1
        except OSError as error:
            self._full = True
            message = "%s: %s; frames that are not in it will be decoded each time, which is slower"
            logger.warning(message, self.path, error_reason(error), extra={"path": self.path})


class Frames:
    """The frames of a clip: behaves like an array (T, 13S/8, 5S/4, 3) uint8 RGB, and decodes what is indexed.

    Args:
        path: the clip.
        num_frames: T.
        mouth_size: S; clips of another S are resized.
        store: keeps frames as JPEG, which changes them a little; None decodes them each time.
        first_block: number of the clip's first block in the store.
    """

    def __init__(
        self, path: Path, num_frames: int, mouth_size: int, store: FrameStore | None = None, first_block: int = 0
    ) -> None:
        self.path = path
        self.shape = (num_frames, *crop_size(mouth_size), 3)
        self.dtype = np.dtype(np.uint8)
        self._store, self._first_block = store, first_block

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Index or indices of frames, then rows, columns and channels, as in an array.

        Raises:
            MediaError: the clip cannot be read.
            DatasetError: the clip has not T frames.
        """
        key, *crop = key if isinstance(key, tuple) else (key,)
        indices = np.arange(len(self))[key]
        image_shape = np.broadcast_to(np.uint8(0), self.shape[1:])[tuple(crop)].shape
        images = np.empty((indices.size, *image_shape), np.uint8)
        blocks, numbers = np.divmod(indices.ravel(), BLOCK_FRAMES)
        for block in np.unique(blocks).tolist():
            chosen = np.flatnonzero(blocks == block)
            for position, image in zip(chosen, self._read(block, numbers[chosen]), strict=True):
                images[position] = image[tuple(crop)]
        return images.reshape(*indices.shape, *image_shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)

    def _read(self, block: int, numbers: np.ndarray) -> Sequence[np.ndarray]:
        start = block * BLOCK_FRAMES
        part = (self.path, start, min(start + BLOCK_FRAMES, len(self)), self.shape)
        if self._store is None:
            return _kept_frames(*part)[numbers]
        return self._store.read(self._first_block + block, numbers, lambda: _decode(*part))


def _decode(path: Path, start: int, stop: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Frames [start, stop) of a clip of this shape (T, H, W, 3)."""
    num_frames, height, width, _ = shape
    images = []
    for frame in read_frames(path, start, stop + (stop == num_frames)):
        interpolation = cv2.INTER_AREA if frame.shape[0] > height else cv2.INTER_CUBIC
        images.append(cv2.resize(frame, (width, height), interpolation=interpolation))
    if len(images) != stop - start:
        raise DatasetError(path, f"expected {num_frames} frames, found {start + len(images)}")
    return np.stack(images)


_kept_frames = lru_cache(KEPT_BLOCKS)(_decode)


def map_array(path: Path, mode: Literal["r", "r+"] = "r") -> np.ndarray:
    """Memory-map the array in a file.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        return np.asarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(path, f"cannot be read: {error_reason(error)}") from None
