"""Prepared datasets that are made without preparing videos: a few short clips under many names."""

import json
import os
from pathlib import Path

import numpy as np

from data_processing.media.video_writer import VideoWriter
from models.crop_layout import crop_size

NUM_VIDEOS = 4  # different clips


def make_dataset(
    folder: Path, num_clips: int, num_frames: int = 30, mouth_size: int = 32, num_val: int = 1
) -> Path:
    """A prepared dataset whose clips are hard links to NUM_VIDEOS ones, in the folder `folder`.

    The clips are clip-000000, clip-000001, … of the speakers s0, s1, … with ten clips each. The last `num_val` are
    the validation split. Frame t of clip k has the brightness 5 t + 20 (k mod NUM_VIDEOS). Row t of its features, of
    the kind whisper, has the values t + 1000 (k mod NUM_VIDEOS). The manifest is not sorted.
    """
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(min(NUM_VIDEOS, num_clips)):
        path = folder / "clips" / f"clip-{number:06d}.mp4"
        height, width = crop_size(mouth_size)
        with VideoWriter(path, width, height, crf=4) as writer:
            for index in range(num_frames):
                writer.write(np.full((height, width, 3), (5 * index + 20 * number) % 256, np.uint8))
        features = np.repeat(np.arange(num_frames, dtype=np.float32)[:, None] + 1000 * number, 384, axis=1)
        landmarks = rng.normal(100, 20, (num_frames, 68, 2)).astype(np.float32)
        np.savez(path.with_suffix(".npz"), features=features, landmarks=landmarks)
    lines = []
    for number in range(num_clips):
        name, original = (f"clip-{k:06d}" for k in (number, number % NUM_VIDEOS))
        if name != original:
            for suffix in (".mp4", ".npz"):
                os.link(folder / "clips" / f"{original}{suffix}", folder / "clips" / f"{name}{suffix}")
        split = "val" if number >= num_clips - num_val else "train"
        line = {"id": name, "person": f"s{number // 10}", "num_frames": num_frames}
        lines.append(line | {"audio_features": "whisper", "split": split})
    rng.shuffle(lines)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
