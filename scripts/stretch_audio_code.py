"""Let the lips move further: python -m scripts.stretch_audio_code IN OUT --data data/mine

A generator predicts the mean of what is possible, so its mouth moves less than the real one. This scales the audio
code about its mean over the training clips: the columns of AdaAT's first layer that multiply the code are scaled,
and the bias keeps the mean. Kernels of OUT are stored in 8 bits. The model card has the measurements.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from data_processing.audio.framing import audio_windows
from data_processing.dataset import load_features
from models.checkpoint import LoadedModel, load_model, save_model
from models.dinet import DINet
from utils.command_line import run_command
from utils.errors import ParameterError

EVERY = 8  # frames of a clip between two that count for the mean


@torch.no_grad()
def stretch(loaded: LoadedModel, features: list[np.ndarray], factor: float) -> None:
    """Scale the audio code of a DINet with AdaAT, in place, about its mean over audio features (T, D) of clips."""
    model = loaded.model
    windows = [audio_windows(rows, np.arange(0, len(rows), EVERY)) for rows in features]
    mean = torch.cat([model.audio_encoder(torch.from_numpy(part)) for part in windows]).mean(dim=0)
    layer = model.deformation.common
    audio_columns = layer.weight[:, 128:]
    layer.bias += (1 - factor) * audio_columns @ mean
    audio_columns *= factor


def run(args: argparse.Namespace) -> None:
    if not 0 < args.factor <= 3:
        raise ParameterError("factor", f"expected a number above 0, at most 3, found {args.factor:g}")
    loaded = load_model(args.source)
    if not isinstance(loaded.model, DINet) or loaded.model.config.deformation != "adaat":
        raise ParameterError("source", f"{args.source}: expected a DINet generator with AdaAT")
    stretch(loaded, load_features(args.data, "train", loaded.audio_features), args.factor)
    save_model(
        args.target,
        loaded.model,
        audio_features=loaded.audio_features,
        mouth_size=loaded.mouth_size,
        info=loaded.info | {"audio_code_factor": args.factor * loaded.info.get("audio_code_factor", 1.0)},
        bits=8,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN", help="a generator with AdaAT")
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write")
    parser.add_argument("--data", type=Path, required=True, help="prepared dataset")
    parser.add_argument("--factor", type=float, default=1.3, help="default: %(default)s")
    run_command(parser, run)


if __name__ == "__main__":
    main()
