"""What the generator does with one frame, as in the paper's Figure 4: python scripts/visualize.py --video in.mp4

Masked source and references; the channels of their features that AdaAT moves most, before and after; the transform
it chose for each, as a moved grid; what is drawn from them, and the real frame. The video's own sound drives it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from matplotlib.figure import Figure

from data_processing import audio_features
from data_processing.audio import load_audio
from data_processing.errors import UserError, command_line
from data_processing.geometry import FaceCrop, crop_radius
from data_processing.landmarks import find_landmarks
from data_processing.video import read_frames
from inference import BUNDLED_CHECKPOINT, EXAMPLE_VIDEO, choose_references
from models.adaat import AdaAT
from models.checkpoint import load_model
from models.dinet import DINet, ReferenceFeatures

CHANNELS = 6
LINES = np.linspace(-1, 1, 9)


def moved_grid(scale: float, rotation: float, translation: np.ndarray) -> list[np.ndarray]:
    """Where a transform of AdaAT reads from: lines (2, 50) of x and y, [-1, 1] spanning the map both ways."""
    along = np.linspace(-1, 1, 50)
    turn = scale * np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    lines = [np.stack(pair) for at in LINES for pair in ((along, 0 * along + at), (0 * along + at, along))]
    return [turn @ line + translation[:, None] for line in lines]


@torch.no_grad()
def draw(model: DINet, crops: list[np.ndarray], window: np.ndarray) -> Figure:
    """The figure, from the source's face crop and those of the references, (13S/8, 5S/4, 3) uint8 RGB each, and the
    audio window (D, 5)."""
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


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=EXAMPLE_VIDEO, help="with sound (default: the example)")
    parser.add_argument("--frame", type=int, default=50, help="at 25 frames per second (default 50)")
    parser.add_argument("--checkpoint", type=Path, default=BUNDLED_CHECKPOINT, help="default: the bundled one")
    parser.add_argument("--output", type=Path, default=Path("figure.png"), help=".png, .svg or .pdf")
    args = parser.parse_args()
    loaded = load_model(args.checkpoint)
    if not isinstance(getattr(loaded.model, "deformation", None), AdaAT):
        raise UserError(f"--checkpoint {args.checkpoint}: expected a generator with AdaAT, found another")
    waveform = load_audio(args.video, "--video")
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
    features = audio_features.extract(waveform, loaded.audio_features, len(landmarks.points))
    figure = draw(loaded.model, crops, audio_features.window(features, args.frame))
    try:
        figure.savefig(args.output, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {args.output}: cannot be written: {error}") from None
    print(args.output)


if __name__ == "__main__":
    main()
