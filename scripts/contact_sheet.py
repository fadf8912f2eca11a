"""Frames of videos in one image, a row per video: python -m scripts.contact_sheet a.mp4 b.mp4 --output sheet.png"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_processing.face.crop import FaceCrop
from data_processing.face.radius import frame_radii
from data_processing.face.tracking import find_landmarks
from data_processing.media.video_reader import check_readable, read_frames
from models.crop_layout import mouth_box
from utils.command_line import run_command
from utils.errors import MediaError, NoFaceError, OutputError, ParameterError, UserError
from utils.files import write_atomically


def video_row(path: Path, frames: range, height: int, crops: Sequence[FaceCrop] = ()) -> np.ndarray:
    """Frames of a video side by side, or the mouth boxes of face crops in them: (height, W, 3) uint8 RGB.

    Raises:
        MediaError: the video cannot be read or is too short.
    """
    images = list(read_frames(path, frames.start, frames.stop, only=frames))
    if len(images) < len(frames):
        reason = f"expected {len(frames)} frames from {frames.start} in steps of {frames.step}, found {len(images)}"
        raise MediaError(path, reason)
    if crops:
        box = mouth_box(crops[0].mouth_size)
        images = [crop.extract(image)[box] for crop, image in zip(crops, images, strict=True)]
    width = round(images[0].shape[1] * height / images[0].shape[0])
    return np.hstack([cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images])


def mouth_crops(path: Path, frames: range, mouth_size: int) -> list[FaceCrop]:
    """Face crops in frames of a video.

    Raises:
        NoFaceError: there is no face in one of the frames.
    """
    landmarks = find_landmarks(path, stop=frames.stop)
    missing = [frame for frame in frames if frame >= len(landmarks.usable) or not landmarks.usable[frame]]
    if missing:
        raise NoFaceError(path, f"no face detected in frame {missing[0]}")
    radius_px = float(np.median(frame_radii(landmarks.points[landmarks.usable])))
    return [FaceCrop.from_landmarks(landmarks.points[frame], radius_px, mouth_size) for frame in frames]


def run(args: argparse.Namespace) -> None:
    """Read the frames, write the image and print its path."""
    for path in args.videos:
        check_readable(path)
    if args.output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise OutputError(args.output, "the name must end in .png or .jpg")
    if min(args.step, args.count) < 1 or args.height < 8 or args.first < 0:
        raise UserError("--step and --count: expected 1 or more; --height: 8 or more; --first: 0 or more")
    frames = range(args.first, args.first + args.step * args.count, args.step)
    crops = mouth_crops(args.videos[0], frames, args.height // 8 * 8) if args.mouth else ()
    rows = [video_row(path, frames, args.height, crops) for path in args.videos]
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
    add("--mouth", action="store_true", help="only the mouth boxes, found in the first video")
    run_command(parser, run)


if __name__ == "__main__":
    main()
