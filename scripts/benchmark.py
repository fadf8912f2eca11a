"""Speed on this machine: python scripts/benchmark.py infer | train

infer: for each mouth size, frames per second of the generator and of cutting, generating and pasting, in float32
and in the fastest precision of the device, one after the other in one run. With --video, also of reading that file,
and of reading it and finding its landmarks.

train: samples per second of this project's training step and of a plain reading of the authors', taken in turns in
one run: float32, AdaAT as one three-dimensional sampling, the graph of the generator retained for the
discriminator's step and gone through in it too. Losses as in the frame stage of the paper.

The weights are random: speed does not depend on them.
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
import torch.nn.functional as F
from tqdm import tqdm

from configs.schema import load_config
from data_processing.dataset import Batch
from data_processing.errors import command_line
from data_processing.geometry import FaceCrop, crop_size
from data_processing.landmarks import find_landmarks
from data_processing.video import read_frames
from losses.adversarial import discriminator_loss, generator_loss
from models.adaat import AdaAT
from models.checkpoint import LoadedModel
from models.device import choose_device, choose_precision
from models.dinet import DINet, DINetConfig
from pipeline import BATCH_SIZE, Dubber
from train_dinet import Trainer, train_step

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


# --- training -----------------------------------------------------------------------------------------------


class SampledAdaAT(AdaAT):
    """AdaAT as the authors compute it: every channel's transform as a grid in one three-dimensional sampling."""

    def forward(
        self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor | None = None
    ) -> torch.Tensor:
        scale, rotation, translation = self.transforms(code)
        batch, channels, height, width = features.shape
        depth, y, x = torch.meshgrid(
            *(torch.linspace(-1, 1, size, device=features.device) for size in (channels, height, width)),
            indexing="ij",
        )
        cos, sin = ((scale * part)[..., None, None] for part in (rotation.cos(), rotation.sin()))
        shift_x, shift_y = translation[..., None, None].unbind(2)
        grid = torch.stack(
            [cos * x - sin * y + shift_x, sin * x + cos * y + shift_y, depth.expand(batch, -1, -1, -1)], dim=-1
        )
        return F.grid_sample(features[:, None], grid, align_corners=False)[:, 0]


def plain_step(trainer: Trainer, batch: Batch) -> None:
    """The authors' training step, read plainly."""
    target, references, audio_window = (x.to(trainer.device) for x in batch[:3])
    discriminator = trainer.discriminators["adversarial"]
    output = trainer.generator(trainer.generator.mask(target), references, audio_window)
    trainer.discriminator_optimizer.zero_grad()
    discriminator_loss(discriminator(target), discriminator(output)).backward(retain_graph=True)
    trainer.discriminator_optimizer.step()
    loss = 10 * trainer.perceptual(output, target) + generator_loss(discriminator(output))
    trainer.generator_optimizer.zero_grad()
    loss.backward()
    trainer.generator_optimizer.step()


def random_batch(mouth_size: int, batch_size: int, audio_dim: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    target, *references = (
        torch.rand(batch_size, 3, *crop_size(mouth_size), generator=generator) for _ in range(1 + 5)
    )
    audio = torch.rand(batch_size, audio_dim, 5, generator=generator)
    return Batch(target, torch.cat(references, dim=1), audio, audio, [])


def benchmark_train(mouth_size: int, batch_size: int, repeats: int, device: torch.device) -> None:
    """Print samples per second of both steps, measured in turns, and their ratio."""
    recipe = Path(__file__).parents[1] / "configs" / "frame_64.yaml"
    common = {"mouth_size": mouth_size, "batch_size": batch_size}
    ours = Trainer.create(load_config(recipe, common), device)
    plain = Trainer.create(load_config(recipe, common | {"precision": "fp32", "channels_last": False}), device)
    plain.generator.deformation.__class__ = SampledAdaAT
    batch = random_batch(mouth_size, batch_size, ours.generator.config.audio_dim)
    steps = {"plain": lambda: plain_step(plain, batch), "ours": lambda: train_step(ours, batch)}
    seconds = {name: [] for name in steps}
    for turn in tqdm(range(1 + repeats), unit="turn", disable=None):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    ratios = np.array(seconds["plain"]) / np.array(seconds["ours"])
    for name, times in seconds.items():
        print(f"{name:>6}: {batch_size / statistics.median(times):.2f} samples/s")
    print(f" ratio: {statistics.median(ratios):.2f} (of {repeats} turns {ratios.min():.2f} to {ratios.max():.2f})")


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("infer", "train"))
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts (default 5)")
    parser.add_argument("--video", type=Path, help="infer: video to find the landmarks of")
    parser.add_argument("--mouth-size", type=int, default=64, help="train: S (default 64)")
    parser.add_argument("--batch-size", type=int, default=16, help="train: samples a step (default 16)")
    args = parser.parse_args()
    device = choose_device(args.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.what == "train":
        benchmark_train(args.mouth_size, args.batch_size, args.repeats, device)
    else:
        benchmark_infer(args.video, args.repeats, device)


def benchmark_infer(video: Path | None, repeats: int, device: torch.device) -> None:
    """Print frames per second for every mouth size."""
    if video:
        num_frames = sum(1 for _ in read_frames(video))
        reading = seconds_of(lambda: deque(read_frames(video), maxlen=0), 1)
        finding = seconds_of(lambda: find_landmarks(video), 1)
        print(
            f"{video.name}: {num_frames / reading:.1f} frames/s read, "
            f"{num_frames / finding:.1f} read with landmarks found"
        )
    fast = choose_precision("auto", device)
    print(f"batches of {BATCH_SIZE}, 1080p frames")
    heads = ("S", "crop", "generator fp32", fast, "ratio", "with cut + paste fp32", fast)
    print("{:>4} {:>9}  {:>14} {:>7} {:>6}   {:>21} {:>7}".format(*heads))
    for mouth_size in (64, 128, 256):
        slow_generator, slow_whole = measure(mouth_size, device, "fp32", repeats)
        fast_generator, fast_whole = measure(mouth_size, device, fast, repeats)
        height, width = crop_size(mouth_size)
        print(
            f"{mouth_size:>4} {f'{height}x{width}':>9}  {slow_generator:>14.1f} {fast_generator:>7.1f} "
            f"{fast_generator / slow_generator:>6.2f}   {slow_whole:>21.1f} {fast_whole:>7.1f}"
        )


if __name__ == "__main__":
    main()
