"""Extract other audio features of a prepared dataset: python -m data_processing.extract DATA --audio-features KIND

They are written to DATA/features/KIND, one .npy for each clip that has none yet. Training does that itself; this
command does it before, on any number of machines.
"""

import argparse
from pathlib import Path

import numpy as np

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.packed import extract_missing, manifest_lines
from utils.command_line import run_command
from utils.cores import num_cores
from utils.errors import ParameterError


def run(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise ParameterError("jobs", f"expected 1 or more, found {args.jobs}")
    lines = manifest_lines(args.data)
    extract_features(np.zeros(SAMPLE_RATE, np.float32), args.audio_features)  # fetches the weights, once
    extract_missing(args.data, lines, args.audio_features, args.jobs, args.scheduler)
    print(f"{len(lines)} clips have {args.audio_features} features: {args.data}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="prepared dataset")
    add("--audio-features", choices=list(FEATURE_DIMS), required=True, help="kind of audio features")
    add("--scheduler", metavar="ADDRESS", help="use a Dask cluster (tcp://…) instead of --jobs")
    add("--jobs", type=int, default=num_cores(), help="clips at a time (default: number of cores)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
