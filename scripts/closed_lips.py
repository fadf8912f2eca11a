"""Estimate the change of Whisper's features that closes the lips: python -m scripts.closed_lips --data data/mine

Writes checkpoints/closed_lips.npy, (384,) float32, which data_processing/audio/silence.py adds to the features of
silence. It is the smallest change that lowers the mouth opening, as ridge regression predicts it from the features,
by SHIFT.
"""

import argparse
from pathlib import Path

import numpy as np

from data_processing.audio.silence import CLOSED_LIPS
from data_processing.dataset import load_clips
from data_processing.face.lips import mouth_opening
from utils.command_line import run_command
from utils.errors import DatasetError
from utils.files import write_atomically

MIN_FRAMES = 25  # of a clip; the range of the mouth opening is unreliable in shorter ones
MIN_RANGE = 0.02  # between closed and open mouth, as a fraction of the face's size
RIDGE = 0.05  # regularisation, as a fraction of the features' mean variance
SHIFT = 0.45  # of the mouth opening, from closed (0) to open (1); the opening in silence is about 0.1 to 0.2


def run(args: argparse.Namespace) -> None:
    features, openings, speakers = [], [], []
    for clip in load_clips(args.data, "train", 64, "whisper"):  # of any size: the frames are not read
        opening = mouth_opening(clip.landmarks)
        closed, opened = np.percentile(opening, (5, 95))
        if len(opening) >= MIN_FRAMES and opened - closed >= MIN_RANGE:
            features.append(clip.features)
            openings.append((opening - closed) / (opened - closed))
            speakers += [clip.speaker] * len(opening)
    if not features:
        raise DatasetError(args.data, f"no training clip of {MIN_FRAMES} frames or more with a moving mouth")
    x, y = np.concatenate(features).astype(np.float64), np.concatenate(openings)
    _, speaker, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    weights = counts[speaker] ** -0.5  # between equal weights of all frames and equal weights of all speakers
    weights /= weights.sum()
    x -= weights @ x
    y -= weights @ y
    penalty = RIDGE * x.var(axis=0).mean() * np.eye(x.shape[1])
    slope = np.linalg.solve(x.T @ (weights[:, None] * x) + penalty, x.T @ (weights * y))
    correlation = np.corrcoef(x @ slope, y)[0, 1]
    print(f"{len(y)} frames of {len(counts)} speakers; correlation {correlation:.3f}")
    closed_lips = (-SHIFT * slope / (slope @ slope)).astype(np.float32)
    write_atomically(CLOSED_LIPS, lambda file: np.save(file, closed_lips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared dataset")
    run_command(parser, run)


if __name__ == "__main__":
    main()
