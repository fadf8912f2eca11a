"""Speed and memory on this machine: python -m scripts.benchmark dub | infer | memory | train

dub: whole dubs by inference.py of a 1080p and a 512p video beside copying the same frames from decoder to encoder
with the same settings, in turns; then the time of each step of a dub alone.

infer: frames per second of the generator for each mouth size, baseline and engine interleaved in one run. The
baseline is the authors' way: one frame at a time, float32, the reference frames encoded again for every frame. The
engine is what inference.py runs. With --video, also the time of whole dubs of that video with both, at the given
mouth size.

memory: memory over time while videos of one and of ten minutes (--video, repeated) are dubbed, each in a process of
its own; plotted to --output.

train: samples per second of this project's training step and of a baseline for each mouth size, interleaved in one
run; on a GPU also the memory. The baseline is the authors' step: float32, AdaAT as one three-dimensional sampling,
the graph of the generator retained for the discriminator's step and traversed in it. Losses as in the frame stage
of the paper.

The weights of the networks are random, but of dubs at S = 64: speed does not depend on them.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from configs.schema import load_config
from data_processing.audio.features import FEATURE_DIMS
from data_processing.batches import Batch, to_float
from data_processing.face.crop import FaceCrop
from data_processing.face.radius import crop_radii
from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_reader import probe, read_frames, read_video, read_video_backward
from data_processing.media.video_writer import VideoWriter, concatenate_videos
from dubbing.compositor import BATCH_SIZE
from dubbing.covers import CoverFinder, StillSearch
from dubbing.face_track import track_face
from dubbing.frame_sources import VideoFileSource
from dubbing.generator import GeneratorSession
from dubbing.pipeline import DubbingPipeline
from dubbing.settings import DubSettings
from dubbing.texture import Candidate, ShotTexture, lower_part
from losses.adversarial import discriminator_loss, generator_loss
from models.adaat import AdaAT
from models.checkpoint import LoadedModel, save_model
from models.crop_layout import crop_size
from models.dinet import DINet, DINetConfig
from training.dinet_trainer import Trainer, train_step
from utils.bundled import BUNDLED_GENERATOR, EXAMPLE_VIDEO, ROOT
from utils.command_line import run_command
from utils.device import choose_device, choose_precision
from utils.errors import UserError

NO_TEXTURE = "engine, no texture"
SUMMARY = re.compile(r"in ([\d.]+) s, the first after ([\d.]+) s")  # of inference.py: whole time, first frame
SIDES = (1080, 512)  # shorter side of the videos that are dubbed
NUM_STEP_FRAMES = 4 * BATCH_SIZE  # that the steps of a dub alone are measured with

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


# --- whole dubs ---------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What a run costs: seconds by the clock and of all processor cores, seconds until the first frame, memory."""

    wall_s: float
    processor_s: float
    first_frame_s: float | None = None
    memory_mb: float | None = None


def scaled(video: Path, side: int, seconds: float, output: Path) -> int:
    """Write a video of that length with its audio, the shorter side of its frames `side` pixels: `video` played
    forward and backward, over and over. Returns the number of frames."""
    info = probe(video)
    scale = side / min(info.width, info.height)
    size = tuple(2 * round(scale * length / 2) for length in (info.width, info.height))
    count = round(seconds * info.fps)
    available = sum(1 for _ in read_frames(video, stop=count, fps=info.fps))
    audio = output.with_suffix(".wav")
    save_wav(audio, np.resize(load_audio(video), round(seconds * SAMPLE_RATE)))

    def played() -> Iterator[np.ndarray]:
        while True:
            yield from read_frames(video, stop=available, fps=info.fps)
            yield from (frame.rgb() for frame in read_video_backward(video, available, fps=info.fps))

    with VideoWriter(output, *size, info.fps, audio_paths=[audio]) as writer:
        for frame in islice(played(), count):
            writer.write(cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))
    return count


def transcode(video: Path, output: Path) -> Cost:
    """Copy the frames of a video from the decoder to the encoder of a dub."""
    info = probe(video)
    start, processor_start = time.perf_counter(), time.process_time()
    with VideoWriter(output, info.width, info.height, info.fps, layout=info.layout) as writer:
        for frame in read_video(video, fps=info.fps):
            writer.write(frame)
    return Cost(time.perf_counter() - start, time.process_time() - processor_start)


def run_dub(video: Path, checkpoint: Path, output: Path, device: str, precision: str) -> Cost:
    """Dub a video with its own audio by inference.py, in a process of its own."""
    files = ["--video", video, "--audio", video, "--checkpoint", checkpoint, "--output", output]
    command = [sys.executable, ROOT / "inference.py", *files, "--device", device, "--precision", precision]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    ended = memory_mb = 0
    while not ended:
        # not that of `usage`, which starts from the memory of this process
        memory_mb = max(memory_mb, peak_memory_mb(process.pid))
        time.sleep(0.1)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    wall_s = time.perf_counter() - start
    printed = process.stdout.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(map(str, command))}: failed with exit code {process.returncode}")
    total_s, first_s = map(float, SUMMARY.search(printed).groups())
    # what precedes the call of `dub`, the start of Python and imports, counts too
    first_frame_s = wall_s - total_s + first_s
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, first_frame_s, memory_mb)


def peak_memory_mb(process: int) -> float:
    """Largest memory of a running process so far, in MB; 0 once it has ended."""
    status = (Path("/proc") / str(process) / "status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def benchmark_dub(
    video: Path, seconds: float, mouth_sizes: list[int], repeats: int, device: torch.device, precision: str
) -> None:
    """Print the cost of whole dubs and of their steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = {size: folder / f"{size}.safetensors" for size in mouth_sizes}
        for size, path in checkpoints.items():
            save_model(path, random_model(size).model, audio_features="whisper", mouth_size=size, info={})
        checkpoints |= {64: BUNDLED_GENERATOR} if 64 in mouth_sizes else {}
        for side in SIDES:
            source, output = folder / f"{side}.mp4", folder / "output.mp4"
            count = scaled(video, side, seconds, source)
            works = {"transcoding": partial(transcode, source, output)}
            for size, checkpoint in checkpoints.items():
                works[f"dub, S = {size}"] = partial(run_dub, source, checkpoint, output, str(device), precision)
            costs: dict[str, list[Cost]] = {name: [] for name in works}
            for _ in range(repeats):
                for name, work in works.items():
                    costs[name].append(work())
            print(f"\n{side}p, {count} frames of {video.name}, {precision}, median of {repeats}\n")
            print("| | frames/s | ms/frame | × transcoding | processor ms/frame | first frame | peak memory |")
            print("|---|---|---|---|---|---|---|")
            base = statistics.median(cost.wall_s for cost in costs["transcoding"])
            for name, own in costs.items():
                wall_s, processor_s = (statistics.median(times) for times in list(zip(*own, strict=True))[:2])
                first = memory = ""
                if name != "transcoding":
                    first = f"{statistics.median(cost.first_frame_s for cost in own):.1f} s"
                    memory = f"{max(cost.memory_mb for cost in own):.0f} MB"
                row = f"{count / wall_s:.1f} | {1000 * wall_s / count:.1f} | {wall_s / base:.2f}"
                print(f"| {name} | {row} | {1000 * processor_s / count:.1f} | {first} | {memory} |")
            benchmark_steps(source, mouth_sizes, device, precision)


def benchmark_steps(video: Path, mouth_sizes: list[int], device: torch.device, precision: str) -> None:
    """Print the time per frame of each step of a dub alone, for some frames of a video."""
    info = probe(video)
    frames = list(islice(read_video(video, fps=info.fps), NUM_STEP_FRAMES))
    source = VideoFileSource(video, info.fps)
    source.first_pass = lambda: iter(frames)
    points = np.stack([one.points for one in track_face(source)])
    radii = crop_radii(points, info.fps)
    windows = np.zeros((BATCH_SIZE, FEATURE_DIMS["whisper"], 5), np.float32)
    with tempfile.TemporaryDirectory() as folder:

        def encode() -> None:
            options = {"layout": info.layout}
            with VideoWriter(Path(folder) / "out.mp4", info.width, info.height, info.fps, **options) as writer:
                for frame in frames:
                    writer.write(frame)

        def decode() -> None:
            deque(islice(read_video(video, fps=info.fps), len(frames)), 0)

        print("\n| step alone | ms/frame | processor ms/frame |\n|---|---|---|")
        print_step("decode", decode, len(frames), device)
        print_step("track the face", lambda: deque(track_face(source), 0), len(frames), device)
        print_step("encode", encode, len(frames), device)
        for size in mouth_sizes:
            session = GeneratorSession(random_model(size), device, precision)
            crops = [FaceCrop.from_landmarks(*one, size) for one in zip(points, radii, strict=True)]
            bounds = [crop.bounds(info.width, info.height) for crop in crops]
            local = [crop.moved(*box[:2]) for crop, box in zip(crops, bounds, strict=True)]
            parts = [frame.region(*box) for frame, box in zip(frames, bounds, strict=True)]
            images = [crop.extract(part) for crop, part in zip(local, parts, strict=True)]
            references = session.encode_references(images[:5])
            texture = ShotTexture([Candidate.of(*one) for one in zip(parts[:20], local[:20], strict=True)])
            still = StillSearch(crops)
            for frame, own in zip(frames, points, strict=True):
                still.add(frame, own)
            covers = CoverFinder([lower_part(*one) for one in zip(parts, local, strict=True)], still.finish())
            shown = list(zip(frames, bounds, parts, crops, local, images, points, strict=True))

            def cut(shown=shown) -> None:
                for frame, box, _, _, crop, *_ in shown:
                    crop.extract(frame.region(*box))

            def move_texture(shown=shown, texture=texture) -> None:
                for _, _, part, _, crop, image, _ in shown:
                    texture.transfer(image, crop, crop.paste_bounds(part))

            def find_covers(shown=shown, covers=covers) -> None:
                for _, _, part, crop, own, _, landmarks in shown:
                    covers.mask(lower_part(part, own), crop, landmarks)

            def paste(shown=shown) -> None:
                for frame, (x0, y0, *_), part, _, crop, image, landmarks in shown:
                    (left, top, *_), change = crop.change(part, 255 - image, landmarks - (x0, y0), source=image)
                    frame.changed(x0 + left, y0 + top, change)

            def generate(session=session, images=images, references=references) -> None:
                session.generate(images[:BATCH_SIZE], references, windows)

            print_step(f"cut the face, S = {size}", cut, len(frames), device)
            print_step(f"generate, S = {size}", generate, BATCH_SIZE, device)
            print_step(f"texture, S = {size}", move_texture, len(frames), device)
            print_step(f"covers, S = {size}", find_covers, len(frames), device)
            print_step(f"paste, S = {size}", paste, len(frames), device)
            if device.type == "cuda":
                print(f"| GPU memory, S = {size} | {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MB | |")


def print_step(name: str, work: Callable[[], object], count: int, device: torch.device) -> None:
    """Print milliseconds per frame, by the clock and of all cores, of work on `count` frames: median of three turns
    after one of warm-up."""
    costs = []
    for _ in range(4):
        start, processor_start = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        costs.append((time.perf_counter() - start, time.process_time() - processor_start))
    wall_s, processor_s = (statistics.median(times) for times in zip(*costs[1:], strict=True))
    print(f"| {name} | {1000 * wall_s / count:.1f} | {1000 * processor_s / count:.1f} |")


# --- baseline and engine ------------------------------------------------------------------------------------


class SessionPipeline(DubbingPipeline):
    """A pipeline with a generator that is loaded already."""

    def __init__(self, session: GeneratorSession) -> None:
        self.session = session
        super().__init__()

    def _load(self, device: str, precision: str) -> GeneratorSession:
        return self.session


def benchmark_dubs(video: Path, mouth_size: int, repeats: int, device: torch.device, precision: str) -> None:
    """Print seconds of whole dubs of a video with its own audio: baseline, engine, and engine without texture."""
    engine = GeneratorSession(random_model(mouth_size), device, precision)
    sessions = {"baseline": BaselineSession(random_model(mouth_size), device), "engine": engine, NO_TEXTURE: engine}
    results = {}
    with tempfile.TemporaryDirectory() as folder:

        def dub(name: str) -> None:
            pipeline = SessionPipeline(sessions[name])
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
        for frame in read_video_backward(video, num_frames, fps=info.fps):
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
    elif args.what == "dub":
        precision = choose_precision(args.precision, device)
        sizes = [args.mouth_size] if args.mouth_size else [64, 256]
        benchmark_dub(args.video or EXAMPLE_VIDEO, args.seconds, sizes, args.repeats, device, precision)
    elif args.what == "memory":
        benchmark_memory(args.video or EXAMPLE_VIDEO, args.minutes, args.output)
    else:
        sizes = [args.mouth_size] if args.mouth_size else [64, 128, 256]
        benchmark_generator(sizes, args.repeats, device, precision)
        if args.video:
            benchmark_dubs(args.video, sizes[-1], args.repeats, device, precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dub", "infer", "memory", "train"))
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed turns, of which the median is printed (default 5)"
    )
    parser.add_argument(
        "--video",
        type=Path,
        help="video to dub; dub scales it to both sizes (default for dub and memory: the bundled example)",
    )
    parser.add_argument("--seconds", type=float, default=20, help="dub: length of the videos (default 20)")
    parser.add_argument("--precision", default="auto", help="dub: auto (default), fp32, bf16 or fp16")
    parser.add_argument("--mouth-size", type=int, help="S (default: all; dub: 64 and 256)")
    parser.add_argument("--batch-size", type=int, default=16, help="train: samples per step (default 16)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10], help="memory: lengths (default 1 10)")
    parser.add_argument("--output", type=Path, default=Path("memory.png"), help="memory: plot to write")
    run_command(parser, run)


if __name__ == "__main__":
    main()
