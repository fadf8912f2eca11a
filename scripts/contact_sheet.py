"""Frames of videos in one picture, a row a video: python -m scripts.contact_sheet a.mp4 b.mp4 --output sheet.png"""

import argparse
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from data_processing.media.video_reader import check_readable, read_frames
from utils.command_line import run_command
from utils.errors import UserError


def row_of(path: Path, first: int, step: int, count: int, height: int) -> np.ndarray:
    """`count` frames of a video beside each other, every `step`-th from `first`: (height, W, 3) uint8 RGB."""
    frames = list(islice(read_frames(path, first), 0, step * count, step))
    if len(frames) < count:
        raise UserError(f"{path}: expected {count} frames from {first} in steps of {step}, found {len(frames)}")
    width = round(frames[0].shape[1] * height / frames[0].shape[0])
    return np.hstack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def run(args: argparse.Namespace) -> None:
    for path in args.videos:
        check_readable(path)
    rows = [row_of(path, args.first, args.step, args.count, args.height) for path in args.videos]
    if len({row.shape for row in rows}) > 1:
        raise UserError("VIDEO: expected videos of one aspect ratio, found several")
    ok, encoded = cv2.imencode(args.output.suffix, cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    if not ok:
        raise UserError(f"--output: expected a name ending in .png or .jpg, found {args.output}")
    args.output.write_bytes(encoded.tobytes())
    print(args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+", type=Path, help="videos of one aspect ratio")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"), help=".png or .jpg (default sheet.png)")
    parser.add_argument("--first", type=int, default=0, help="first frame at 25 fps (default 0)")
    parser.add_argument("--step", type=int, default=10, help="frames from one to the next (default 10)")
    parser.add_argument("--count", type=int, default=6, help="frames a video (default 6)")
    parser.add_argument("--height", type=int, default=240, help="height of a row in pixels (default 240)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
