"""Pictures of what a generator does: python -m scripts.visualize generator | strips | loudness --help"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from data_processing.audio.features import extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME, window
from data_processing.batches import make_batch, reference_indices
from data_processing.dataset import Clip, load_clips
from data_processing.face.crop import FaceCrop, crop_radius
from data_processing.face.lips import LIPS, mouth_opening
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
from utils.errors import UserError

CHANNELS = 6
FRAMES = 6  # of a strip
MAX_LAG = 5  # frames by which a mouth may be ahead of its sound or behind
LINES = np.linspace(-1, 1, 9)


def moved_grid(scale: float, rotation: float, translation: np.ndarray) -> list[np.ndarray]:
    """Where a transform of AdaAT reads from: lines (2, 50) of x and y, [-1, 1] spanning the map both ways."""
    along = np.linspace(-1, 1, 50)
    turn = scale * np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    lines = [np.stack(pair) for at in LINES for pair in ((along, 0 * along + at), (0 * along + at, along))]
    return [turn @ line + translation[:, None] for line in lines]


@torch.no_grad()
def draw_generator(model: DINet, crops: list[np.ndarray], window: np.ndarray) -> Figure:
    """The paper's Figure 4, from the source's face crop and those of the references, (13S/8, 5S/4, 3) uint8 RGB
    each, and the audio window (D, 5)."""
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    target, references = images[:1], images[1:]
    masked = model.mask(target)
    encoded = model.encode_references(references.flatten(0, 1)[None])
    source = model.source_encoder(masked)
    sound = torch.from_numpy(window)[None]
    code = torch.cat(model.codes(source, encoded, sound), dim=1)
    deformed = model.deform(source, encoded, code)
    output = model.generate(masked, ReferenceFeatures(*encoded), sound)
    scale, rotation, translation = (x[0].numpy() for x in model.deformation.transforms(code))
    change = (deformed - encoded.appearance).abs().mean(dim=(2, 3))[0]
    chosen = change.argsort(descending=True)[:CHANNELS].tolist()

    columns = max(CHANNELS, len(references) + 1)
    figure = Figure(figsize=(1.5 * columns + 1, 11.5), layout="constrained")
    grid = figure.subplots(6, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()

    def show(row: int, column: int, picture: np.ndarray, title: str = "", **options) -> None:
        grid[row, column].imshow(picture, **options)
        grid[row, column].set_title(title, fontsize=8)

    show(0, 0, masked[0].permute(1, 2, 0).numpy(), "masked source")
    for number, reference in enumerate(references):
        show(0, number + 1, reference.permute(1, 2, 0).numpy(), f"reference {number + 1}")
    maps = (("$F_s$", source), ("$F_{ref}$", encoded.appearance), ("$F_d$", deformed))
    for row, (name, features) in enumerate(maps, 1):
        for column, channel in enumerate(chosen):
            show(row, column, features[0, channel].numpy(), f"{name}, channel {channel}", cmap="viridis")
    for column, channel in enumerate(chosen):
        axes = grid[4, column]
        for line in moved_grid(scale[channel], rotation[channel], translation[channel]):
            axes.plot(*line, color="C0", linewidth=0.7)
        axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="0.6", linewidth=1)
        axes.set(xlim=(-2, 2), ylim=(2, -2), aspect=target.shape[2] / target.shape[3])
        words = f"{scale[channel]:.2f}×, {np.degrees(rotation[channel]):.0f}°"
        axes.set_title(words, fontsize=8)
    show(5, 0, output[0].permute(1, 2, 0).numpy(), "output")
    show(5, 1, target[0].permute(1, 2, 0).numpy(), "target")
    show(5, 2, (output - target)[0].abs().mean(dim=0).numpy(), "difference", cmap="magma", vmin=0, vmax=0.25)
    return figure


@torch.no_grad()
def dubbed_crops(loaded: LoadedModel, clip: Clip, real: Clip, indices: np.ndarray) -> np.ndarray:
    """Frames of the clip `real` with the mouth boxes that a generator draws from the same clip at its own size for
    their own sound: (K, H, W, 3) uint8 RGB."""
    own, shown = mouth_box(loaded.mouth_size), mouth_box(mouth_size_of(real.frames.shape[1]))
    frames = real.frames[indices].copy()
    for index, frame in zip(indices, frames, strict=True):
        rng = np.random.default_rng(int(index))
        references = reference_indices(rng, len(clip.frames), index, loaded.model.config.num_references)
        batch = make_batch([(clip, index, references, 1.0, 0.0, False)])
        [output] = loaded.model(loaded.model.mask(batch.target), batch.references, batch.audio_window)
        drawn = (output.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        box = frame[shown]
        box[:] = cv2.resize(drawn[own], box.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return frames


def strips(args: argparse.Namespace) -> Figure:
    """The paper's Figures 5 and 6: held-out people, a row for the real frames and one for every checkpoint."""
    if args.people < 1:
        raise UserError(f"--people: expected 1 or more, found {args.people}")
    if args.size < 32 or args.size % 32:
        raise UserError(f"--size: expected a multiple of 32, found {args.size}")
    real = load_clips(args.data, "val", args.size, LIPS)  # features that need no extraction; they are not used
    longest = {clip.speaker: clip for clip in sorted(real, key=lambda clip: len(clip.frames))}
    chosen = {clip.id: clip for clip in list(longest.values())[-args.people :]}
    indices = {name: evenly_spaced(len(clip.frames), FRAMES) for name, clip in chosen.items()}
    rows = [("real", [clip.frames[indices[name]] for name, clip in chosen.items()])]
    for path in args.checkpoints:
        loaded = load_model(path)
        clips = {clip.id: clip for clip in load_clips(args.data, "val", loaded.mouth_size, loaded.audio_features)}
        title = path.parent.name if path.stem in ("generator", "best") else f"{path.stem}\n{path.parent.name}"
        rows.append(
            (title, [dubbed_crops(loaded, clips[name], clip, indices[name]) for name, clip in chosen.items()])
        )
    return draw_strips(rows)


def draw_strips(rows: list[tuple[str, list[np.ndarray]]]) -> Figure:
    """Titles with the frames (K, H, W, 3) of one person after another."""
    columns = sum(map(len, rows[0][1]))
    figure = Figure(figsize=(1.2 * columns + 1, 1.55 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, people) in zip(grid, rows, strict=True):
        for axes, frame in zip(line, (frame for frames in people for frame in frames), strict=True):
            axes.imshow(frame, interpolation="bilinear")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(title.replace("_", " "), fontsize=9)
    return figure


def loudness_of(waveform: np.ndarray, num_frames: int) -> np.ndarray:
    """(T,) loudness of each frame's sound in dB, -60 and more."""
    samples = np.zeros(num_frames * SAMPLES_PER_FRAME, np.float32)
    samples[: len(waveform)] = waveform[: len(samples)]
    power = np.square(samples.reshape(num_frames, -1)).mean(axis=1)
    return 10 * np.log10(np.maximum(power, 1e-6))


def best_lag(opening: np.ndarray, loudness: np.ndarray) -> tuple[int, float] | None:
    """The number of frames that the mouth is behind its sound, where the two correlate most, and how much.

    NaN where no mouth is seen; None where too little is seen, or nothing changes.
    """
    found = {}
    for lag in range(-MAX_LAG, MAX_LAG + 1):
        mouth, sound = (x[max(0, y) : len(x) + min(0, y)] for x, y in ((opening, lag), (loudness, -lag)))
        seen = np.isfinite(mouth)
        if seen.sum() > MAX_LAG and mouth[seen].std() > 0 and sound[seen].std() > 0:
            found[lag] = float(np.corrcoef(mouth[seen], sound[seen])[0, 1])
    return max(found.items(), key=lambda item: item[1]) if found else None


def loudness(args: argparse.Namespace) -> Figure:
    """How far the mouth of each video is open, over time, and how loud its sound is."""
    figure = Figure(figsize=(11, 2.3 * len(args.videos)), layout="constrained")
    for axes, video in zip(figure.subplots(len(args.videos), 1, squeeze=False)[:, 0], args.videos, strict=True):
        landmarks = find_landmarks(video)
        heard = loudness_of(load_audio(video), len(landmarks.points))
        opening = np.where(landmarks.usable, mouth_opening(landmarks.points), np.nan)
        seconds = np.arange(len(opening)) / FPS
        axes.plot(seconds, opening, color="C0")
        axes.set_ylabel("opening / face", color="C0")
        axes.twinx().plot(seconds, heard, color="C1", linewidth=0.8)
        found = best_lag(opening, heard)
        words = "too little to correlate"
        if found:
            lag, correlation = found
            where = f"{abs(lag)} frames {'behind' if lag >= 0 else 'ahead'}"
            words = f"correlation at most {correlation:.2f}, the mouth {where}"
        axes.set_title(
            f"{video.parent.name}/{video.name}: mouth opening (blue), loudness in dB (orange); {words}", fontsize=9
        )
    axes.set_xlabel("seconds")
    return figure


def generator(args: argparse.Namespace) -> Figure:
    """The paper's Figure 4: masked source and references; the channels of their features that AdaAT moves most,
    before and after; the transform it chose for each, as a moved grid; what is drawn from them, and the real frame.
    The video's own sound drives it."""
    loaded = load_audio_driven_generator(args.checkpoint, torch.device("cpu"))
    if not isinstance(getattr(loaded.model, "deformation", None), AdaAT):
        raise UserError(f"--checkpoint {args.checkpoint}: expected a generator with AdaAT, found another")
    waveform = load_audio(args.video)
    landmarks = find_landmarks(args.video)
    shot = next((shot for shot in landmarks.shots if shot[0] <= args.frame < shot[1]), None)
    if shot is None:
        last = len(landmarks.points) - 1
        raise UserError(f"--frame: expected one of 0 to {last} with a face, found {args.frame}")
    radius_px = crop_radius(landmarks.points[slice(*shot)])
    crops = []
    for index in [args.frame, *choose_references(landmarks, *shot, loaded.model.config.num_references)]:
        crop = FaceCrop.from_landmarks(landmarks.points[index], radius_px, loaded.mouth_size)
        crops.append(crop.extract(next(read_frames(args.video, index, index + 1))))
    features = extract_features(waveform, loaded.audio_features, len(landmarks.points))
    return draw_generator(loaded.model, crops, window(features, args.frame))


def run(args: argparse.Namespace) -> None:
    figure = args.run(args)
    try:
        figure.savefig(args.output, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {args.output}: cannot be written: {error}") from None
    print(args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(required=True, metavar="FIGURE")
    flags = {
        generator: {
            "--video": {"type": Path, "default": EXAMPLE_VIDEO, "help": "with sound (default: the example)"},
            "--frame": {"type": int, "default": 50, "help": "at 25 frames per second (default 50)"},
            "--checkpoint": {"type": Path, "default": BUNDLED_GENERATOR, "help": "default: the bundled one"},
        },
        strips: {
            "--data": {"type": Path, "required": True, "help": "prepared dataset"},
            "--checkpoints": {"type": Path, "nargs": "+", "required": True, "help": "generators, a row each"},
            "--people": {
                "type": int,
                "default": 2,
                "help": "held-out people, the longest clip of each (default 2)",
            },
            "--size": {"type": int, "default": 128, "help": "mouth size of the real frames (default 128)"},
        },
        loudness: {
            "--videos": {"type": Path, "nargs": "+", "required": True, "help": "with sound, a panel each"},
        },
    }
    for run, options in flags.items():
        of = figures.add_parser(run.__name__, description=run.__doc__, help=run.__doc__.split(":")[0])
        for flag, settings in options.items():
            of.add_argument(flag, **settings)
        of.add_argument("--output", type=Path, default=Path("figure.png"), help=".png, .svg or .pdf")
        of.set_defaults(run=run)
    run_command(parser, run)


if __name__ == "__main__":
    main()
