"""Find what closes lips in Whisper's features: python -m scripts.closed_lips --data data/mine

Writes checkpoints/closed_lips.npy, (384,) float32: what data_processing/silence.py adds to the features of silence.
"""

import argparse
from pathlib import Path

import numpy as np

from data_processing.audio.silence import CLOSED_LIPS
from data_processing.dataset import load_features
from data_processing.face.lips import mouth_opening
from utils.command_line import run_command
from utils.errors import UserError
from utils.files import read_jsonl, write_atomically

MIN_FRAMES = 25  # of a clip: fewer say little about how far a mouth opens
MIN_RANGE = 0.02  # between its closed and its open mouth, in parts of the face
RIDGE = 0.05  # of the features' mean variance
SHIFT = 0.45  # how much less open, between closed (0) and open (1): silence lies about at 0.1 to 0.2


def run(args: argparse.Namespace) -> None:
    features, openings, people = [], [], []
    lines = [line for line in read_jsonl(args.data / "manifest.jsonl") if line["split"] == "train"]
    for line, heard in zip(lines, load_features(args.data, "train", "whisper"), strict=True):
        with np.load(args.data / "clips" / f"{line['id']}.npz") as arrays:
            opening = mouth_opening(arrays["landmarks"])
        closed, opened = np.percentile(opening, (5, 95))
        if len(opening) >= MIN_FRAMES and opened - closed >= MIN_RANGE:
            features.append(heard)
            openings.append((opening - closed) / (opened - closed))
            people += [line["person"]] * len(opening)
    if not features:
        raise UserError(f"--data: expected clips of mouths that move in {args.data}, found none")
    x, y = np.concatenate(features).astype(np.float64), np.concatenate(openings)
    _, person, counts = np.unique(people, return_inverse=True, return_counts=True)
    weights = counts[person] ** -0.5  # between that of every frame and that of every person
    weights /= weights.sum()
    x -= weights @ x
    y -= weights @ y
    penalty = RIDGE * x.var(axis=0).mean() * np.eye(x.shape[1])
    slope = np.linalg.solve(x.T @ (weights[:, None] * x) + penalty, x.T @ (weights * y))
    print(f"{len(y)} frames of {len(counts)} people; correlation {np.corrcoef(x @ slope, y)[0, 1]:.3f}")
    closed_lips = (-SHIFT * slope / (slope @ slope)).astype(np.float32)
    write_atomically(CLOSED_LIPS, lambda file: np.save(file, closed_lips))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared dataset, with features of Whisper")
    run_command(parser, run)


if __name__ == "__main__":
    main()
