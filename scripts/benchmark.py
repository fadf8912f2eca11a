"""Speed and memory on this machine: python -m scripts.benchmark infer | memory | train

infer: frames per second of the generator for each mouth size, baseline and engine interleaved in one run. The
baseline is the authors' way: one frame at a time, float32, the reference frames encoded again for every frame. The
engine is what inference.py runs. With --video, also the time of each step of a dub alone, and of whole dubs of that
video with both, at the given mouth size.

memory: memory over time while videos of one and of ten minutes (--video, repeated) are dubbed, each in a process of
its own; plotted to --output.

train: samples per second of this project's training step and of a baseline for each mouth size, interleaved in one
run; on a GPU also the memory. The baseline is the authors' step: float32, AdaAT as one three-dimensional sampling,
the graph of the generator retained for the discriminator's step and traversed in it. Losses as in the frame stage
of the paper.

The weights of the networks are random: speed does not depend on them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from configs.schema import load_config
from data_processing.audio.features import FEATURE_DIMS
from data_processing.batches import Batch, to_float
from data_processing.face.crop import FaceCrop
from data_processing.face.detectors import track_landmarks
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.frame import RgbFrame
from data_processing.media.video_reader import probe, read_frames, read_frames_backward
from data_processing.media.video_writer import VideoWriter, concatenate_videos
from dubbing.compositor import BATCH_SIZE
from dubbing.generator import GeneratorSession
from dubbing.pipeline import DubbingPipeline
from dubbing.settings import DubSettings
from dubbing.texture import Candidate, ShotTexture
from losses.adversarial import discriminator_loss, generator_loss
from models.adaat import AdaAT
from models.checkpoint import LoadedModel
from models.crop_layout import crop_size
from models.dinet import DINet, DINetConfig
from training.dinet_trainer import Trainer, train_step
from utils.bundled import EXAMPLE_VIDEO, ROOT
from utils.command_line import run_command
from utils.device import choose_device, choose_precision
from utils.errors import UserError

NO_TEXTURE = "engine, no texture"

# --- inference ----------------------------------------------------------------------------------------------


class BaselineSession(GeneratorSession):
    """A generator as the authors run it: float32, frame by frame, with the reference frames each time."""

    def __init__(self, loaded: LoadedModel, device: torch.device) -> None:
        self.model, self.mouth_size = loaded.model.to(device), loaded.mouth_size
        self.audio_features, self.device = loaded.audio_features, device

    def encode_references(self, crops: list[np.ndarray]) -> torch.Tensor:
        return self._to_tensor(crops).contiguous().flatten(0, 1)[None]

    @torch.inference_mode()
    def generate(self, crops: list[np.ndarray], references: torch.Tensor, windows: np.ndarray) -> np.ndarray:
        outputs = []
        for crop, window in zip(crops, torch.from_numpy(windows).to(self.device), strict=True):
            masked = self.model.mask(self._to_tensor([crop]).contiguous())
            outputs.append(self.model(masked, references, window[None]))
        return (torch.cat(outputs) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def interleaved(
    works: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call, taking turns `repeats` times after one turn of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in tqdm(range(1 + repeats), unit="turn", leave=False, disable=None):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> str:
    """Speed-up: median over the turns, minimum and maximum."""
    speedups = np.array(seconds[slow]) / np.array(seconds[fast])
    return f"{statistics.median(speedups):.2f} ({speedups.min():.2f} to {speedups.max():.2f})"


def random_model(mouth_size: int) -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(DINet(DINetConfig(FEATURE_DIMS["whisper"])).eval(), "whisper", mouth_size, {})


def benchmark_generator(mouth_sizes: list[int], repeats: int, device: torch.device, precision: str) -> None:
    """Print frames per second of the generator, baseline and engine."""
    rng = np.random.default_rng(0)
    print(f"\ngenerator, batches of {BATCH_SIZE} in {precision}, frames/s\n")
    print("| S | crop | baseline | engine | speed-up |\n|---|---|---|---|---|")
    for mouth_size in mouth_sizes:
        sessions = {
            "baseline": BaselineSession(random_model(mouth_size), device),
            "engine": GeneratorSession(random_model(mouth_size), device, precision),
        }
        crops = [rng.integers(0, 256, (*crop_size(mouth_size), 3), np.uint8) for _ in range(BATCH_SIZE)]
        windows = rng.normal(size=(BATCH_SIZE, FEATURE_DIMS["whisper"], 5)).astype(np.float32)
        works = {
            name: partial(session.generate, crops, session.encode_references(crops[:5]), windows)
            for name, session in sessions.items()
        }
        seconds = interleaved(works, repeats, device)
        height, width = crop_size(mouth_size)
        rates = (f"{BATCH_SIZE / statistics.median(times):.2f}" for times in seconds.values())
        print(f"| {mouth_size} | {height}×{width} | {' | '.join(rates)} | {ratio(seconds, 'baseline', 'engine')} |")


def benchmark_steps(video: Path, mouth_size: int, device: torch.device, precision: str) -> None:
    """Print milliseconds per frame of each step of a dub alone, for the first frames of a video."""
    info = probe(video)
    frames = list(read_frames(video, 0, 2 * BATCH_SIZE, fps=info.fps))
    points = find_landmarks(video, stop=2 * BATCH_SIZE).points
    session = GeneratorSession(random_model(mouth_size), device, precision)
    crop = FaceCrop.from_landmarks(points[0], crop_radii(points)[0], mouth_size)
    crops = [crop.extract(frame) for frame in frames[:BATCH_SIZE]]
    windows = np.zeros((BATCH_SIZE, FEATURE_DIMS["whisper"], 5), np.float32)
    references = session.encode_references(crops[:5])
    texture = ShotTexture([Candidate.of(frame, crop) for frame in frames])
    bounds = crop.paste_bounds(frames[0])
    detail = texture.transfer(crops[0], crop, bounds)[1][..., None]
    with tempfile.TemporaryDirectory() as folder:

        def write() -> None:
            with VideoWriter(Path(folder) / "out.mp4", info.width, info.height, info.fps) as writer:
                for frame in frames:
                    writer.write(frame)

        steps = {
            "decode": (lambda: deque(read_frames(video, 0, len(frames), fps=info.fps), maxlen=0), len(frames)),
            "landmarks": (lambda: deque(track_landmarks(map(RgbFrame, frames), "dlib"), maxlen=0), len(frames)),
            "crop": (lambda: [crop.extract(frame) for frame in frames], len(frames)),
            "generator": (lambda: session.generate(crops, references, windows), BATCH_SIZE),
            "texture": (lambda: [texture.transfer(one, crop, bounds) for one in crops], BATCH_SIZE),
            "paste": (
                lambda: [crop.paste(frame, crops[0], points[0], detail=detail) for frame in frames],
                len(frames),
            ),
            "encode": (write, len(frames)),
        }
        print(f"\nsteps of a dub alone, S = {mouth_size}, {info.width}×{info.height}, milliseconds per frame\n")
        for name, (work, count) in steps.items():
            times = interleaved({name: work}, 3, device)[name]
            print(f"{name:>10}: {1000 * statistics.median(times) / count:6.1f}")


def benchmark_dubs(video: Path, mouth_size: int, repeats: int, device: torch.device, precision: str) -> None:
    """Print seconds of whole dubs of a video with its own audio: baseline, engine, and engine without texture."""
    pipeline = DubbingPipeline(device=str(device))
    engine = GeneratorSession(random_model(mouth_size), device, precision)
    sessions = {"baseline": BaselineSession(random_model(mouth_size), device), "engine": engine, NO_TEXTURE: engine}
    results = {}
    with tempfile.TemporaryDirectory() as folder:

        def dub(name: str) -> None:
            pipeline.generator = sessions[name]
            settings = DubSettings(texture=name == "engine")
            results[name] = pipeline.dub(video, video, Path(folder) / f"{name}.mp4", settings)

        seconds = interleaved({name: partial(dub, name) for name in sessions}, repeats, device)
    print(
        f"\nwhole dub, S = {mouth_size}, {results['engine'].num_frames} frames of {video.name}, from file to file\n"
    )
    for name, times in seconds.items():
        print(
            f"{name:>19}: {statistics.median(times):.1f} s, first frame after {results[name].first_frame_s:.1f} s"
        )
    print(
        f"speed-up: {ratio(seconds, 'baseline', NO_TEXTURE)}, with texture {ratio(seconds, 'baseline', 'engine')}"
    )


def lengthen(video: Path, minutes: float, folder: Path) -> tuple[Path, Path]:
    """A video of that many minutes, `video` played forward and backward, and its audio repeated."""
    info = probe(video)
    loop, long, audio = folder / "loop.mp4", folder / f"{minutes:g}.mp4", folder / f"{minutes:g}.wav"
    num_frames = sum(1 for _ in read_frames(video, fps=info.fps))
    with VideoWriter(loop, info.width, info.height, info.fps) as writer:
        for frame in read_frames(video, fps=info.fps):
            writer.write(frame)
        for frame in read_frames_backward(video, num_frames, fps=info.fps):
            writer.write(frame)
    concatenate_videos([loop] * ceil(minutes * 60 * info.fps / (2 * num_frames)), long)
    save_wav(audio, np.resize(load_audio(video), round(minutes * 60 * SAMPLE_RATE)))
    return long, audio


def measure_memory(command: list[str | Path]) -> np.ndarray:
    """Memory of a process while it runs: (K, 2), seconds and MB, twice a second."""
    start, samples = time.monotonic(), []
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            pages = int((Path("/proc") / str(process.pid) / "statm").read_text().split()[1])
            if pages:  # 0 once it has ended
                samples.append((time.monotonic() - start, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
            time.sleep(0.5)
    if process.returncode:
        raise UserError(f"{' '.join(map(str, command))}: failed with exit code {process.returncode}")
    return np.array(samples)


def benchmark_memory(video: Path, minutes: list[float], output: Path) -> None:
    """Plot the memory of dubs of `video` repeated to several lengths, and print the peaks."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            long, audio = lengthen(video, length, Path(folder))
            files = ["--video", long, "--audio", audio, "--output", Path(folder) / "dubbed.mp4"]
            memory = measure_memory([sys.executable, ROOT / "inference.py", *files])
            axes.plot(memory[:, 0], memory[:, 1], label=f"{length:g} min of video")
            print(f"{length:g} min: at most {memory[:, 1].max():.0f} MB")
    axes.set(xlabel="seconds", ylabel="memory in MB", ylim=(0, None))
    axes.legend()
    figure.savefig(output, dpi=100)


# --- training -----------------------------------------------------------------------------------------------


class SampledAdaAT(AdaAT):
    """AdaAT as the authors compute it: the transforms of all channels as one three-dimensional sampling grid."""

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


def baseline_step(trainer: Trainer, batch: Batch) -> None:
    """The authors' training step."""
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
    """Images are uint8, as they are loaded."""
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, 3 * (1 + 5), *crop_size(mouth_size))
    target, references = torch.randint(256, size, generator=generator, dtype=torch.uint8).split([3, 15], dim=1)
    audio = torch.rand(batch_size, audio_dim, 5, generator=generator)
    return Batch(target, references, audio, audio, [""] * batch_size)


def benchmark_train(mouth_sizes: list[int], batch_size: int, repeats: int, device: torch.device) -> None:
    """Print samples per second of both steps, interleaved, the speed-up, and on a GPU the memory of this step."""
    recipe = ROOT / "configs" / "stages" / "frame_64.yaml"
    torch.backends.cudnn.benchmark = device.type == "cuda"
    print(f"\ntraining step, batches of {batch_size}, samples/s\n")
    print("| S | baseline | ours | speed-up | GPU memory of ours |\n|---|---|---|---|---|")
    for mouth_size in mouth_sizes:
        common = {"mouth_size": mouth_size, "batch_size": batch_size}
        trainer = Trainer.create(load_config(recipe, common), device)
        plain = common | {"precision": "fp32", "channels_last": False}
        baseline = Trainer.create(load_config(recipe, plain), device)
        baseline.generator.deformation.__class__ = SampledAdaAT
        batch = random_batch(mouth_size, batch_size, trainer.generator.config.audio_dim)
        floats = batch._replace(target=to_float(batch.target), references=to_float(batch.references))
        steps = {
            "baseline": partial(baseline_step, baseline, floats),
            "ours": partial(train_step, trainer, batch),
        }
        seconds = interleaved(steps, repeats, device)
        rates = (f"{batch_size / statistics.median(times):.2f}" for times in seconds.values())
        del baseline, steps
        memory = f"{step_memory(trainer, batch, device) / 1e9:.1f} GB" if device.type == "cuda" else "–"
        print(f"| {mouth_size} | {' | '.join(rates)} | {ratio(seconds, 'baseline', 'ours')} | {memory} |")


def step_memory(trainer: Trainer, batch: Batch, device: torch.device) -> int:
    """Largest number of bytes on the GPU during a step."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    train_step(trainer, batch)
    return torch.cuda.max_memory_allocated(device)


def run(args: argparse.Namespace) -> None:
    device = choose_device(args.device)
    precision = choose_precision("auto", device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.what == "train":
        sizes = [args.mouth_size] if args.mouth_size else [64, 128, 256]
        benchmark_train(sizes, args.batch_size, args.repeats, device)
    elif args.what == "memory":
        benchmark_memory(args.video or EXAMPLE_VIDEO, args.minutes, args.output)
    else:
        sizes = [args.mouth_size] if args.mouth_size else [64, 128, 256]
        benchmark_generator(sizes, args.repeats, device, precision)
        if args.video:
            benchmark_steps(args.video, sizes[-1], device, precision)
            benchmark_dubs(args.video, sizes[-1], args.repeats, device, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("infer", "memory", "train"))
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed turns, of which the median is printed (default 5)"
    )
    parser.add_argument(
        "--video", type=Path, help="infer, memory: video to dub (default for memory: the bundled example)"
    )
    parser.add_argument("--mouth-size", type=int, help="S (default: 64, 128 and 256; dubs at 256)")
    parser.add_argument("--batch-size", type=int, default=16, help="train: samples per step (default 16)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10], help="memory: lengths (default 1 10)")
    parser.add_argument("--output", type=Path, default=Path("memory.png"), help="memory: plot to write")
    run_command(parser, run)


if __name__ == "__main__":
    main()
