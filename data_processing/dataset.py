"""Read a prepared dataset (data_processing.prepare): clips with their frames, audio features and landmarks.

Nothing is held per clip: features and landmarks are parts of a few memory-mapped files (data_processing/packed.py),
and frames are decoded when they are indexed (data_processing/frame_store.py).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np

from data_processing.frame_store import Frames, FrameStore, jpeg_bytes
from data_processing.packed import PackedSplit, clip_path, digest, hint_at_links, manifest_lines, open_packed
from utils.memory import available_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One clip of a prepared dataset.

    id: name of the clip and of its files.
    speaker: name of the speaker.
    frames: (T, 13S/8, 5S/4, 3) uint8 RGB face crops, in memory or decoded when indexed.
    features: (T, D) float32 audio features, or lip features (LIPS).
    landmarks: (T, 68, 2) float32, (x, y) in source pixels.
    """

    id: str
    speaker: str
    frames: np.ndarray | Frames
    features: np.ndarray
    landmarks: np.ndarray


@dataclass(frozen=True, eq=False)
class Clips(Sequence[Clip]):
    """Clips of one split of a prepared dataset; each is made when it is asked for.

    data: folder of the prepared dataset.
    mouth_size: S of the frames.
    numbers: of the clips among those of the split.
    """

    data: Path
    mouth_size: int
    packed: PackedSplit
    store: FrameStore | None
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int) -> Clip: ...

    @overload
    def __getitem__(self, key: slice) -> "Clips": ...

    def __getitem__(self, key: int | slice) -> "Clip | Clips":
        if isinstance(key, slice):
            return replace(self, numbers=self.numbers[key])
        name, speaker, first_frame, num_frames, first_block = self.packed.index[self.numbers[key]].item()
        clip_id = name.decode(errors="surrogateescape")
        path = clip_path(self.data, clip_id)
        rows = slice(first_frame, first_frame + num_frames)
        return Clip(
            clip_id,
            speaker.decode(errors="surrogateescape"),
            Frames(path, num_frames, self.mouth_size, self.store, first_block),
            self.packed.features[rows],
            self.packed.landmarks[rows],
        )


def load_clips(
    data: Path, split: str, mouth_size: int, audio_features: str, store_frames: bool = False
) -> Sequence[Clip]:
    """The clips of one split of a prepared dataset, in an order that depends only on its manifest.

    Args:
        data: folder of the prepared dataset.
        split: "train" or "val".
        mouth_size: S of the frames; clips prepared with another S are resized.
        audio_features: kind of audio features, or LIPS: see `open_packed`.
        store_frames: keep decoded frames as JPEG under `data`/packed, for training, which uses each many times.
            This changes them a little. Otherwise the clips are decoded each time.

    Raises:
        DatasetError: `data` is not a prepared dataset, the split is empty, or the arrays of a clip cannot be read.
        MediaError: the audio track of a clip cannot be read.
        OutputError: a file under `data` cannot be written.
    """
    packed = open_packed(data, split, audio_features)
    store = None
    if store_frames:
        with hint_at_links():
            store = FrameStore(packed.folder / f"frames-{mouth_size}.jpegs", packed.num_blocks)
        num_bytes = packed.num_frames * jpeg_bytes(mouth_size)
        if num_bytes > (available := available_bytes()):
            message = "%s: about %.3g GB of frames in %s do not fit into %.3g GB of memory; use a fast disk"
            logger.info(message, split, num_bytes / 1e9, store.path, available / 1e9, extra={"path": data})
    return Clips(data, mouth_size, packed, store, range(len(packed.index)))


def load_features(data: Path, split: str, audio_features: str) -> list[np.ndarray]:
    """Only the features (T, D) of the clips of `load_clips`, in the same order. Raises what it raises."""
    packed = open_packed(data, split, audio_features)
    return np.split(packed.features, packed.index["first_frame"][1:])


def fingerprint(data: Path) -> str:
    """A hash of the clips of a prepared dataset with their splits, whatever the order in which they were prepared.

    A run that is resumed on data with another fingerprint would see other batches.

    Raises:
        DatasetError: `data` is not a prepared dataset.
    """
    return digest(manifest_lines(data))


def thin(clips: Sequence[Clip], max_frames: int = 200_000) -> Sequence[Clip]:
    """Evenly spaced ones of the clips, with about `max_frames` frames together; all if they have no more.

    For what holds arrays of all clips in memory: 200,000 frames are 2.2 hours, and 300 MB of Whisper features.
    """
    num_frames = sum(len(clip.frames) for clip in clips)
    return clips[:: max(1, -(-num_frames // max_frames))]
