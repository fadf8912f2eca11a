"""Prepared datasets that are made without preparing videos: a few short clips under many names."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_processing.frame_store import BLOCK_FRAMES
from data_processing.media.video_writer import VideoWriter
from models.crop_layout import crop_size

NUM_VIDEOS = 4  # different clips, unless they are given


def make_dataset(
    folder: Path,
    num_clips: int,
    num_frames: int = 30,
    mouth_size: int = 32,
    num_val: int = 1,
    videos: Sequence[np.ndarray] | None = None,
) -> Path:
    """A prepared dataset in a new folder, whose clips are hard links to a few.

    The clips are clip-000000, clip-000001, … of the speakers s0, s1, … with ten clips each. The last `num_val` are
    the validation split. The manifest is not sorted.

    Frame t of clip k has the brightness 5 t + 20 (k mod NUM_VIDEOS), unless `videos` are given: (T, H, W, 3) uint8
    each, used in turn. Row t of its features, of the kind whisper, has the values t + 1000 (k mod NUM_VIDEOS).
    """
    (folder / "clips").mkdir(parents=True)
    if videos is None:
        shape = (num_frames, *crop_size(mouth_size), 3)
        brightness = 5 * np.arange(num_frames)[:, None, None, None]
        videos = [np.broadcast_to(brightness + 20 * k, shape).astype(np.uint8) for k in range(NUM_VIDEOS)]
    rng = np.random.default_rng(0)
    for number, frames in enumerate(videos[:num_clips]):
        path = folder / "clips" / f"clip-{number:06d}.mp4"
        height, width = frames.shape[1:3]
        with VideoWriter(path, width, height, crf=12, key_frame_interval=BLOCK_FRAMES) as writer:
            for frame in frames:
                writer.write(frame)
        features = np.repeat(np.arange(len(frames), dtype=np.float32)[:, None] + 1000 * number, 384, axis=1)
        landmarks = rng.normal(100, 20, (len(frames), 68, 2)).astype(np.float32)
        np.savez(path.with_suffix(".npz"), features=features, landmarks=landmarks)
    lines = []
    for number in range(num_clips):
        name, original = (f"clip-{k:06d}" for k in (number, number % len(videos)))
        if name != original:
            for suffix in (".mp4", ".npz"):
                os.link(folder / "clips" / f"{original}{suffix}", folder / "clips" / f"{name}{suffix}")
        split = "val" if number >= num_clips - num_val else "train"
        line = {"id": name, "person": f"s{number // 10}", "num_frames": len(videos[number % len(videos)])}
        lines.append(line | {"audio_features": "whisper", "split": split})
    rng.shuffle(lines)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
