"""Figures of generators and of dubbed videos: python -m scripts.visualize generator | strips | loudness --help"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from data_processing.audio.features import extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME, audio_windows
from data_processing.batches import make_batch, reference_indices
from data_processing.dataset import Clip, load_clips
from data_processing.face.crop import FaceCrop
from data_processing.face.lips import LIPS, mouth_opening
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import find_landmarks
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import FPS, read_frames
from dubbing.generator import load_audio_driven_generator
from dubbing.references import choose_references
from evaluation.clips import evenly_spaced
from models.adaat import AdaAT
from models.checkpoint import LoadedModel, load_model
from models.crop_layout import mouth_box, mouth_size_of
from models.dinet import DINet, ReferenceFeatures
from utils.bundled import BUNDLED_GENERATOR, EXAMPLE_VIDEO
from utils.command_line import run_command
from utils.errors import CheckpointError, OutputError, ParameterError, error_reason

NUM_CHANNELS = 6  # feature channels shown
NUM_FRAMES = 6  # frames of each clip in a row of strips
MAX_LAG = 5  # largest lag between mouth and audio, in frames to either side
GRID_LINES = np.linspace(-1, 1, 9)


def transformed_grid(scale: float, rotation: float, translation: np.ndarray) -> list[np.ndarray]:
    """Where AdaAT samples a channel: a regular grid under its similarity transform.

    Args:
        scale, rotation, translation: of one channel; rotation in radians, translation (2,).

    Returns:
        Lines (2, 50) of x and y, horizontal and vertical alternately. The feature map spans [-1, 1] in both.
    """
    t = np.linspace(-1, 1, 50)
    matrix = scale * np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    lines = [np.stack(xy) for level in GRID_LINES for xy in ((t, 0 * t + level), (0 * t + level, t))]
    return [matrix @ line + translation[:, None] for line in lines]


@torch.no_grad()
def draw_generator(model: DINet, crops: list[np.ndarray], audio_window: np.ndarray) -> Figure:
    """Figure 4 of the paper.

    Args:
        crops: face crops (13S/8, 5S/4, 3) uint8 RGB, the source's first, then those of the reference frames.
        audio_window: (D, 5).
    """
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    target, references = images[:1], images[1:]
    masked = model.mask(target)
    encoded = model.encode_references(references.flatten(0, 1)[None])
    source = model.source_encoder(masked)
    audio = torch.from_numpy(audio_window)[None]
    code = torch.cat(model.codes(source, encoded, audio), dim=1)
    deformed = model.deform(source, encoded, code)
    output = model.generate(masked, ReferenceFeatures(*encoded), audio)
    scale, rotation, translation = (x[0].numpy() for x in model.deformation.transforms(code))
    change = (deformed - encoded.appearance).abs().mean(dim=(2, 3))[0]
    channels = change.argsort(descending=True)[:NUM_CHANNELS].tolist()

    columns = max(NUM_CHANNELS, len(references) + 1)
    figure = Figure(figsize=(1.5 * columns + 1, 11.5), layout="constrained")
    grid = figure.subplots(6, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()

    def show(row: int, column: int, image: np.ndarray, title: str = "", **options) -> None:
        grid[row, column].imshow(image, **options)
        grid[row, column].set_title(title, fontsize=8)

    show(0, 0, masked[0].permute(1, 2, 0).numpy(), "masked source")
    for number, reference in enumerate(references):
        show(0, number + 1, reference.permute(1, 2, 0).numpy(), f"reference {number + 1}")
    maps = (("$F_s$", source), ("$F_{ref}$", encoded.appearance), ("$F_d$", deformed))
    for row, (name, features) in enumerate(maps, 1):
        for column, channel in enumerate(channels):
            show(row, column, features[0, channel].numpy(), f"{name}, channel {channel}", cmap="viridis")
    for column, channel in enumerate(channels):
        axes = grid[4, column]
        for line in transformed_grid(scale[channel], rotation[channel], translation[channel]):
            axes.plot(*line, color="C0", linewidth=0.7)
        axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="0.6", linewidth=1)
        axes.set(xlim=(-2, 2), ylim=(2, -2), aspect=target.shape[2] / target.shape[3])
        axes.set_title(f"{scale[channel]:.2f}×, {np.degrees(rotation[channel]):.0f}°", fontsize=8)
    show(5, 0, output[0].permute(1, 2, 0).numpy(), "output")
    show(5, 1, target[0].permute(1, 2, 0).numpy(), "target")
    show(5, 2, (output - target)[0].abs().mean(dim=0).numpy(), "difference", cmap="magma", vmin=0, vmax=0.25)
    return figure


@torch.no_grad()
def dubbed_crops(loaded: LoadedModel, clip: Clip, real: Clip, indices: np.ndarray) -> np.ndarray:
    """Frames of a clip with the mouth boxes replaced by those of a generator, driven by the matched audio.

    Args:
        clip: the clip at the size of the generator.
        real: the same clip at the size of the result.

    Returns:
        (K, H, W, 3) uint8 RGB, H × W as in `real`.
    """
    mouth, real_mouth = mouth_box(loaded.mouth_size), mouth_box(mouth_size_of(real.frames.shape[1]))
    frames = real.frames[indices].copy()
    for index, frame in zip(indices, frames, strict=True):
        rng = np.random.default_rng(int(index))
        references = reference_indices(rng, len(clip.frames), index, loaded.model.config.num_references)
        batch = make_batch([(clip, index, references, 1.0, 0.0, False)])
        [output] = loaded.model(loaded.model.mask(batch.target), batch.references, batch.audio_window)
        generated = (output.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        box = frame[real_mouth]
        box[:] = cv2.resize(generated[mouth], box.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return frames


def strips(args: argparse.Namespace) -> Figure:
    """Figures 5 and 6 of the paper: held-out speakers, one row of real frames and one row per checkpoint."""
    if args.people < 1:
        raise ParameterError("people", f"expected 1 or more, found {args.people}")
    if args.size < 32 or args.size % 32:
        raise ParameterError("size", f"expected a multiple of 32, found {args.size}")
    real = load_clips(args.data, "val", args.size, LIPS)  # lip features need no extraction; they are not used
    longest = {clip.speaker: clip for clip in sorted(real, key=lambda clip: len(clip.frames))}
    selected = {clip.id: clip for clip in list(longest.values())[-args.people :]}
    indices = {name: evenly_spaced(len(clip.frames), NUM_FRAMES) for name, clip in selected.items()}
    rows = [("real", [clip.frames[indices[name]] for name, clip in selected.items()])]
    for path in args.checkpoints:
        loaded = load_model(path)
        clips = {clip.id: clip for clip in load_clips(args.data, "val", loaded.mouth_size, loaded.audio_features)}
        title = path.parent.name if path.stem in ("generator", "best") else f"{path.stem}\n{path.parent.name}"
        dubbed = [dubbed_crops(loaded, clips[name], clip, indices[name]) for name, clip in selected.items()]
        rows.append((title, dubbed))
    return draw_strips(rows)


def draw_strips(rows: list[tuple[str, list[np.ndarray]]]) -> Figure:
    """A grid of frames.

    Args:
        rows: title and, per speaker, frames (K, H, W, 3) uint8 RGB.
    """
    columns = sum(map(len, rows[0][1]))
    figure = Figure(figsize=(1.2 * columns + 1, 1.55 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, speakers) in zip(grid, rows, strict=True):
        for axes, frame in zip(line, (frame for frames in speakers for frame in frames), strict=True):
            axes.imshow(frame, interpolation="bilinear")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(title.replace("_", " "), fontsize=9)
    return figure


def loudness_db(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """(T,) loudness of the audio (N,) at 16 kHz in each frame in dB relative to full scale, at least -60."""
    samples = np.zeros(num_frames * SAMPLES_PER_FRAME, np.float32)
    samples[: len(waveform)] = waveform[: len(samples)]
    power = np.square(samples.reshape(num_frames, -1)).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 1e-6))


def best_lag(opening: np.ndarray, loudness: np.ndarray) -> tuple[int, float] | None:
    """The lag of the mouth behind the audio with the highest correlation, and that correlation.

    Args:
        opening: (T,) mouth opening, NaN without a face.
        loudness: (T,) loudness.

    Returns:
        The lag in frames (negative: the mouth leads) and the correlation coefficient. None if too few frames have a
        face, or if either is constant.
    """
    correlations = {}
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        mouth, audio = (x[max(0, y) : len(x) + min(0, y)] for x, y in ((opening, lag), (loudness, -lag)))
        valid = np.isfinite(mouth)
        if valid.sum() > MAX_LAG and mouth[valid].std() > 0 and audio[valid].std() > 0:
            correlations[lag] = float(np.corrcoef(mouth[valid], audio[valid])[0, 1])
    return max(correlations.items(), key=lambda item: item[1]) if correlations else None


def loudness(args: argparse.Namespace) -> Figure:
    """Mouth opening and audio loudness over time: one panel per video."""
    figure = Figure(figsize=(11, 2.3 * len(args.videos)), layout="constrained")
    for axes, video in zip(figure.subplots(len(args.videos), 1, squeeze=False)[:, 0], args.videos, strict=True):
        landmarks = find_landmarks(video)
        level_db = loudness_db(load_audio(video), len(landmarks.points))
        opening = np.where(landmarks.usable, mouth_opening(landmarks.points), np.nan)
        time_s = np.arange(len(opening)) / FPS
        axes.plot(time_s, opening, color="C0")
        axes.set_ylabel("opening / face height", color="C0")
        axes.twinx().plot(time_s, level_db, color="C1", linewidth=0.8)
        best = best_lag(opening, level_db)
        result = "no correlation"
        if best:
            lag, correlation = best
            side = "late" if lag >= 0 else "early"
            result = f"highest correlation {correlation:.2f}, mouth {abs(lag)} frames {side}"
        name = f"{video.parent.name}/{video.name}"
        axes.set_title(f"{name}: mouth opening (blue), loudness in dB (orange); {result}", fontsize=9)
    axes.set_xlabel("time in s")
    return figure


def generator(args: argparse.Namespace) -> Figure:
    """Figure 4 of the paper: how a generator with AdaAT generates one frame.

    Shows the masked source and the reference frames, the feature channels that AdaAT changes most before and after
    the warp, their transforms as warped grids, and output, target and difference. The driving audio is the video's
    own.
    """
    loaded = load_audio_driven_generator(args.checkpoint, torch.device("cpu"))
    if not isinstance(getattr(loaded.model, "deformation", None), AdaAT):
        raise CheckpointError(args.checkpoint, "not a generator with AdaAT")
    waveform = load_audio(args.video)
    landmarks = find_landmarks(args.video)
    shot = next((shot for shot in landmarks.shots if shot[0] <= args.frame < shot[1]), None)
    if shot is None:
        last = len(landmarks.points) - 1
        raise ParameterError("frame", f"expected one of 0 to {last} with a face, found {args.frame}")
    radii = crop_radii(landmarks.points[slice(*shot)])
    crops = []
    for index in [args.frame, *choose_references(landmarks, *shot, loaded.model.config.num_references)]:
        crop = FaceCrop.from_landmarks(landmarks.points[index], radii[index - shot[0]], loaded.mouth_size)
        crops.append(crop.extract(next(read_frames(args.video, index, index + 1))))
    features = extract_features(waveform, loaded.audio_features, len(landmarks.points))
    return draw_generator(loaded.model, crops, audio_windows(features, np.array([args.frame]))[0])


def run(args: argparse.Namespace) -> None:
    figure = args.draw(args)
    try:
        figure.savefig(args.output, dpi=110)
    except (OSError, ValueError) as error:
        raise OutputError(args.output, f"cannot be written: {error_reason(error)}") from None
    print(args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(required=True, metavar="FIGURE")
    flags = {
        generator: {
            "--video": {
                "type": Path,
                "default": EXAMPLE_VIDEO,
                "help": "with audio (default: the bundled example)",
            },
            "--frame": {"type": int, "default": 50, "help": "frame number at 25 fps (default %(default)s)"},
            "--checkpoint": {"type": Path, "default": BUNDLED_GENERATOR, "help": "default: the bundled one"},
        },
        strips: {
            "--data": {"type": Path, "required": True, "help": "prepared dataset"},
            "--checkpoints": {"type": Path, "nargs": "+", "required": True, "help": "generators, one row each"},
            "--people": {
                "type": int,
                "default": 2,
                "metavar": "N",
                "help": "held-out speakers, the longest clip of each (default %(default)s)",
            },
            "--size": {"type": int, "default": 128, "help": "mouth size of the real frames (default %(default)s)"},
        },
        loudness: {
            "--videos": {"type": Path, "nargs": "+", "required": True, "help": "with audio, one panel each"},
        },
    }
    for draw, options in flags.items():
        subparser = figures.add_parser(draw.__name__, description=draw.__doc__, help=draw.__doc__.split(":")[0])
        for flag, settings in options.items():
            subparser.add_argument(flag, **settings)
        subparser.add_argument("--output", type=Path, default=Path("figure.png"), help=".png, .svg or .pdf")
        subparser.set_defaults(draw=draw)
    run_command(parser, run)


if __name__ == "__main__":
    main()
