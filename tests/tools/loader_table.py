"""What a dataset of many clips costs: python -m tests.tools.loader_table VIDEO --output DIR

VIDEO shows one talking face for six seconds or more. Prints three Markdown tables:

- decoding: bytes per frame, and frames per second of CPU time, when six random frames of a clip of 150 are read:
  from clips as `prepare` writes them, from older ones (a key frame every 250 frames), from the frame store (JPEG);
- memory: the highest memory use of `train_dinet.py` at S = 32 for 200 and for CLIPS clips, and the time from the
  start of a process to its first batch at S = 256, each with at most 256 open files. The first start packs them.
- loading: seconds per batch at S = 256, of 20 samples with five reference frames, for frames that are used for the
  first time, and again. The CPU time, divided by the number of cores, is the least that several workers can take.

The dataset is made in DIR: its clips are hard links to four, and DIR is left there.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch.utils.data import DataLoader

from data_processing.batches import TrainingBatches
from data_processing.dataset import load_clips
from data_processing.face.crop import FaceCrop
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import find_landmarks
from data_processing.frame_store import BLOCK_FRAMES, Frames, FrameStore
from data_processing.media.video_reader import FPS, read_frames
from data_processing.media.video_writer import VideoWriter
from models.crop_layout import mouth_size_of
from tests.support.datasets import make_dataset
from tests.support.training import TINY, write_recipe
from utils.command_line import run_command

NUM_FRAMES = 150  # of the clip that is decoded
OLD_INTERVAL = 250  # frames from one key frame to the next, in clips of earlier versions
CLIP_FRAMES = 30  # of the clips of the made dataset
BATCH_SIZE, NUM_BATCHES, REPEATS = 20, 6, 4
TRAINER_STEPS = 20
MAX_FILES = 256


def read_crops(video: Path, points: np.ndarray, mouth_size: int) -> np.ndarray:
    """Face crops (T, 13S/8, 5S/4, 3) uint8 of the beginning of a video with landmarks (T, 68, 2)."""
    frames = zip(read_frames(video, 0, len(points)), points, crop_radii(points), strict=True)
    return np.stack([FaceCrop.from_landmarks(p, radius, mouth_size).extract(frame) for frame, p, radius in frames])


def decoding_rows(crops: np.ndarray, folder: Path) -> list[tuple[str, float, float]]:
    """Format, bytes per frame and random frames per second of CPU time for a clip of these frames (T, H, W, 3)."""
    rows = []
    mouth_size = mouth_size_of(crops.shape[1])
    for name, interval in (("older clip", OLD_INTERVAL), ("clip", BLOCK_FRAMES)):
        clip = folder / f"{name}-{mouth_size}.mp4"
        with VideoWriter(clip, *crops.shape[2:0:-1], crf=12, key_frame_interval=interval) as writer:
            for frame in crops:
                writer.write(frame)
        speed = random_frames_per_s(partial(seek_and_decode, clip, interval))
        rows.append((name, clip.stat().st_size / len(crops), speed))
    store = FrameStore(folder / f"frames-{mouth_size}.jpegs", -(-len(crops) // BLOCK_FRAMES))
    frames = Frames(clip, len(crops), mouth_size, store)
    frames[:]  # stores them
    return [*rows, ("JPEG", store.path.stat().st_size / len(crops), random_frames_per_s(frames.__getitem__))]


def seek_and_decode(clip: Path, interval: int, numbers: np.ndarray) -> list[np.ndarray]:
    """Frames of a clip, sorted; each is decoded from the last key frame, one in `interval`, or the frame before."""
    images = []
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        position = -1
        for number in np.sort(numbers).tolist():
            key_frame = number - number % interval
            if position < key_frame:
                container.seek(round(key_frame / FPS / stream.time_base), stream=stream)
                decoded = container.decode(stream)
            while position != number:
                frame = next(decoded)
                position = round(frame.time * FPS)
            images.append(frame.to_ndarray(format="rgb24"))
    return images


def random_frames_per_s(read: Callable[[np.ndarray], Any]) -> float:
    """Frames per second of CPU time when six random ones of NUM_FRAMES are read at a time; the median of 20."""
    rng = np.random.default_rng(0)
    times = []
    for _ in range(20):
        numbers = rng.choice(NUM_FRAMES, 6, replace=False)
        start = time.process_time()
        read(numbers)
        times.append(time.process_time() - start)
    return 6 / float(np.median(times))


def peak_memory_mb(data: Path, folder: Path) -> float:
    """The highest resident memory of a training of TRAINER_STEPS steps, validation included."""
    folder.mkdir()
    recipe = write_recipe(folder, TINY.replace("max_steps: 4", f"max_steps: {TRAINER_STEPS}"))
    command = [sys.executable, "train_dinet.py", "--config", recipe, "--data", data, "--run-dir", folder / "run"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log, preexec_fn=_limit_files)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError((folder / "log.txt").read_text())
    return usage.ru_maxrss / 1024


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))


def _load(data: Path, workers: int, seed: int, steps: list[int], start: float, results: Connection) -> None:
    """Load batches; send the seconds from `start` to the first, and per batch, by the clock and of CPU time."""
    _limit_files()
    clips = load_clips(data, "train", 256, "whisper", store_frames=True)
    batches = TrainingBatches(clips, BATCH_SIZE, 5, max(steps) + 1, seed)
    loading_s, loading_cpu_s = time.monotonic(), _cpu_s()
    first = None
    method = "fork" if workers else None  # as in a training, which is not started by multiprocessing
    for _ in DataLoader(batches, None, sampler=steps, num_workers=workers, multiprocessing_context=method):
        first = first or (time.monotonic() - start, _cpu_s())
    each = ((time.monotonic() - loading_s) / len(steps), (_cpu_s() - loading_cpu_s) / len(steps))
    results.send((first, each))


def _cpu_s() -> float:
    """Of this process and its workers that have ended."""
    return sum(os.times()[:4])


def load(data: Path, workers: int, seed: int, steps: list[int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """`_load` in a process of its own."""
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    arguments = (data, workers, seed, steps, time.monotonic(), sender)
    process = get_context("spawn").Process(target=_load, args=arguments)
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True)
    points = find_landmarks(args.video).points[:NUM_FRAMES]
    print("| S | format | bytes per frame | fraction of raw | random frames/s |\n|---|---|---|---|---|")
    for mouth_size in (64, 128, 256):
        crops = read_crops(args.video, points, mouth_size)
        for name, num_bytes, speed in decoding_rows(crops, args.output):
            print(
                f"| {mouth_size} | {name} | {num_bytes:,.0f} | {num_bytes / crops[0].nbytes:.3f} | {speed:,.0f} |"
            )
    videos = [crops[start : start + CLIP_FRAMES] for start in range(0, 4 * CLIP_FRAMES, CLIP_FRAMES)]

    print("\n| clips | first batch, first start | later start | peak memory of the training |\n|---|---|---|---|")
    for num_clips in (200, args.clips):
        data = make_dataset(args.output / f"{num_clips}", num_clips, num_val=20, videos=videos)
        starts = ["{:.1f} s ({:.1f} s of CPU time)".format(*load(data, 0, 0, [0])[0]) for _ in range(2)]
        memory = peak_memory_mb(data, args.output / f"training-{num_clips}")
        print(f"| {num_clips:,} | {starts[0]} | {starts[1]} | {memory:.0f} MB |", flush=True)

    print("\n| workers | s per batch, first use (CPU time) | s per batch, stored (CPU time) |\n|---|---|---|")
    for workers in (0, 2, 4):
        steps = list(range(NUM_BATCHES))
        first, stored = (load(data, workers, 1 + workers, repeats * steps)[1] for repeats in (1, REPEATS))
        print("| {} | {:.2f} ({:.2f}) | {:.2f} ({:.2f}) |".format(workers, *first, *stored), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, metavar="VIDEO")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--clips", type=int, default=20_000, help="default: %(default)s")
    run_command(parser, run)


if __name__ == "__main__":
    main()
