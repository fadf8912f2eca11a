"""Frames of videos in one image, a row per video: python -m scripts.contact_sheet a.mp4 b.mp4 --output sheet.png"""

import argparse
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from data_processing.media.video_reader import check_readable, read_frames
from utils.command_line import run_command
from utils.errors import MediaError, OutputError, ParameterError
from utils.files import write_atomically


def video_row(path: Path, first: int, step: int, count: int, height: int) -> np.ndarray:
    """`count` frames of a video side by side, every `step`-th from frame `first`: (height, W, 3) uint8 RGB.

    Raises:
        MediaError: the video cannot be read or is too short.
    """
    frames = list(islice(read_frames(path, first), 0, step * count, step))
    if len(frames) < count:
        raise MediaError(path, f"expected {count} frames from {first} in steps of {step}, found {len(frames)}")
    width = round(frames[0].shape[1] * height / frames[0].shape[0])
    return np.hstack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def run(args: argparse.Namespace) -> None:
    """Read the frames, write the image and print its path."""
    for path in args.videos:
        check_readable(path)
    if args.output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise OutputError(args.output, "the name must end in .png or .jpg")
    rows = [video_row(path, args.first, args.step, args.count, args.height) for path in args.videos]
    if len({row.shape for row in rows}) > 1:
        raise ParameterError("videos", "the videos have different aspect ratios")
    _, encoded = cv2.imencode(args.output.suffix, cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    write_atomically(args.output, lambda file: file.write(encoded.tobytes()))
    print(args.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("videos", nargs="+", type=Path, metavar="VIDEO", help="videos of the same aspect ratio")
    add("--output", type=Path, default=Path("sheet.png"), help=".png or .jpg to write (default sheet.png)")
    add("--first", type=int, default=0, help="first frame, at 25 fps (default 0)")
    add("--step", type=int, default=10, help="distance between frames (default 10)")
    add("--count", type=int, default=6, help="frames per video (default 6)")
    add("--height", type=int, default=240, help="height of a row in pixels (default 240)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
