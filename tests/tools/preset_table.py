"""Settings of the x264 encoder compared: python -m tests.tools.preset_table VIDEO … [--frames N]

Encodes the first frames of each video at crf 16. Prints for each setting, in Markdown: processor time and bytes per
frame, and the SSIM of the luma (Gaussian window, 11 × 11) of every tenth frame.
"""

import argparse
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from skimage.metrics import structural_similarity

from data_processing.media import video_writer
from data_processing.media.frame import Frame
from data_processing.media.video_reader import VideoInfo, probe, read_video
from data_processing.media.video_writer import ENCODERS, VideoWriter
from utils.command_line import print_result, run_command

SETTINGS = {
    "ultrafast": {"preset": "ultrafast"},
    "superfast": {"preset": "superfast"},
    "superfast, look-ahead 10": {"preset": "superfast", "x264-params": "rc-lookahead=10:mbtree=1"},
    "used": ENCODERS["h264"].options,
    "veryfast": {"preset": "veryfast"},
    "faster": {"preset": "faster"},
    "fast": {"preset": "fast"},
}


def measure(frames: list[Frame], info: VideoInfo, setting: dict[str, str], output: Path) -> tuple[float, ...]:
    """Milliseconds of processor time, kB and SSIM per frame."""
    video_writer.ENCODERS["h264"] = video_writer.ENCODERS["h264"]._replace(options=setting)
    start = time.process_time()
    with VideoWriter(output, info.width, info.height, info.fps, layout=info.layout) as writer:
        for frame in frames:
            writer.write(frame)
    milliseconds = 1000 * (time.process_time() - start) / len(frames)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = list(zip(read_video(output, fps=info.fps), frames, strict=True))[5::10]
    ssim = [structural_similarity(encoded.luma, frame.luma, **window) for encoded, frame in pairs]
    return milliseconds, output.stat().st_size / len(frames) / 1000, float(np.mean(ssim))


def run(args: argparse.Namespace) -> None:
    with TemporaryDirectory() as folder:
        for video in args.videos:
            info = probe(video)
            frames = list(islice(read_video(video, fps=info.fps), args.frames))
            print_result(f"\n{video.name}, {info.width}×{info.height}, {len(frames)} frames\n")
            print_result("| setting | processor ms/frame | kB/frame | SSIM |\n|---|---|---|---|")
            for name, setting in SETTINGS.items():
                milliseconds, size, ssim = measure(frames, info, setting, Path(folder) / "encoded.mp4")
                print_result(f"| {name} | {milliseconds:.1f} | {size:.1f} | {ssim:.5f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=40, help="of each video (default 40)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
