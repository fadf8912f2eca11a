"""Speed of dubbing on this machine: python scripts/benchmark.py [--video FILE]

For each mouth size, frames per second of the generator and of cutting, generating and pasting, in float32 and in
the fastest precision of the device, one after the other in one run. The weights are random: speed does not depend
on them. With --video, also of reading that file, and of reading it and finding its landmarks.
"""

import argparse
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from data_processing.errors import command_line
from data_processing.geometry import FaceCrop, crop_size
from data_processing.landmarks import find_landmarks
from data_processing.video import read_frames
from inference import BATCH_SIZE, Dubber
from models.checkpoint import LoadedModel
from models.device import choose_device, choose_precision
from models.dinet import DINet, DINetConfig

RADIUS_PX = 120  # of a face that fills a third of the height of a 1080p frame


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of one call, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(mouth_size: int, device: torch.device, precision: str, repeats: int) -> tuple[float, float]:
    """Frames per second of (the generator, cut + generate + paste) on 1080p frames."""
    torch.manual_seed(0)
    model = DINet(DINetConfig()).eval()
    dubber = Dubber(LoadedModel(model, "phoneme", mouth_size, {}), device, precision)
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1080, 1920, 3), np.uint8)
    crop = FaceCrop(800.0, 300.0, 2 * RADIUS_PX / mouth_size, mouth_size)
    images = [rng.integers(0, 256, (*crop_size(mouth_size), 3), np.uint8) for _ in range(5)]
    references = dubber.encode_references(images)
    windows = rng.random((BATCH_SIZE, 29, 5), np.float32)

    def whole() -> None:
        crops = [crop.extract(frame) for _ in range(BATCH_SIZE)]
        for drawn in dubber.redraw(crops, references, windows):
            crop.paste(frame, drawn)

    inputs = [images[0]] * BATCH_SIZE
    generator_seconds = seconds_of(lambda: dubber.redraw(inputs, references, windows), repeats)
    return BATCH_SIZE / generator_seconds, BATCH_SIZE / seconds_of(whole, repeats)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts (default 5)")
    parser.add_argument("--video", type=Path, help="video to find the landmarks of")
    args = parser.parse_args()
    if args.video:
        num_frames = sum(1 for _ in read_frames(args.video))
        reading = seconds_of(lambda: deque(read_frames(args.video), maxlen=0), 1)
        finding = seconds_of(lambda: find_landmarks(args.video), 1)
        print(
            f"{args.video.name}: {num_frames / reading:.1f} frames/s read, "
            f"{num_frames / finding:.1f} read with landmarks found"
        )
    device = choose_device(args.device)
    fast = choose_precision("auto", device)
    threads = torch.get_num_threads()
    print(f"{device}, {threads} threads, torch {torch.__version__}; batches of {BATCH_SIZE}, 1080p frames")
    heads = ("S", "crop", "generator fp32", fast, "ratio", "with cut + paste fp32", fast)
    print("{:>4} {:>9}  {:>14} {:>7} {:>6}   {:>21} {:>7}".format(*heads))
    for mouth_size in (64, 128, 256):
        slow_generator, slow_whole = measure(mouth_size, device, "fp32", args.repeats)
        fast_generator, fast_whole = measure(mouth_size, device, fast, args.repeats)
        height, width = crop_size(mouth_size)
        print(
            f"{mouth_size:>4} {f'{height}x{width}':>9}  {slow_generator:>14.1f} {fast_generator:>7.1f} "
            f"{fast_generator / slow_generator:>6.2f}   {slow_whole:>21.1f} {fast_whole:>7.1f}"
        )


if __name__ == "__main__":
    main()
