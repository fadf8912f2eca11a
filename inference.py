"""Dub a video: redraw the mouth so that the lips follow another recording.

    python inference.py --video speaker.mp4 --audio speech.wav --output dubbed.mp4

Without arguments the bundled example is dubbed. The result has the resolution and the frame rate of the video, and
the length of the longest sound: a shorter video is played forward and backward. Frames without a face pass through
unchanged.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from data_processing.audio.features import FEATURE_DIMS
from data_processing.face.detectors import BACKENDS
from data_processing.media.video_reader import check_readable
from data_processing.media.video_writer import check_writable
from dubbing.generator import DTYPES
from dubbing.pipeline import DubbingPipeline
from dubbing.segments import segments_folder
from utils.bundled import BUNDLED_GENERATOR, EXAMPLE_AUDIO, EXAMPLE_VIDEO
from utils.command_line import run_command
from utils.device import limit_malloc_arenas
from utils.errors import UserError


def dub(args: argparse.Namespace) -> None:
    """Check the arguments, dub, and say what was done."""
    check_readable(args.video)
    for audio in args.audio:
        check_readable(audio)
    check_readable(args.checkpoint)
    check_writable(args.output)
    if args.output.exists() and any(args.output.samefile(given) for given in (args.video, *args.audio)):
        raise UserError(f"--output: expected another file than the input {args.output}")
    pipeline = DubbingPipeline(
        args.checkpoint, device=args.device, precision=args.precision, landmarks=args.landmarks
    )
    trained_with = pipeline.dubber.audio_features
    if args.audio_features not in (None, trained_with):
        raise UserError(
            f"--audio-features: {args.checkpoint} was trained with {trained_with}, found {args.audio_features}"
        )
    with tqdm(unit="frame", desc="dubbing", delay=2) as bar:  # not into the notes

        def progress(done: int, expected: int) -> None:
            bar.total = expected
            bar.update(done - bar.n)

        try:
            done = pipeline.dub(
                args.video,
                args.audio,
                args.output,
                face=args.face,
                references=args.references,
                when_short=args.when_short,
                sharpen=args.sharpen,
                side_by_side=args.side_by_side,
                crf=args.crf,
                resume=args.resume,
                progress=progress,
            )
        except KeyboardInterrupt:
            kept = segments_folder(args.output)
            if args.resume and kept.exists():
                raise KeyboardInterrupt(f"what is done is kept in {kept}; the same command goes on") from None
            raise
    without = done.frames - done.redrawn
    print(
        f"{args.output}: {done.frames} frames ({float(done.frames / done.fps):.1f} s at {float(done.fps):g} fps) "
        f"in {done.seconds:.1f} s, the first after {done.first_s:.1f} s"
        + (f"; {without} frames left unchanged" if without else "")
    )


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.crf <= 51:
        raise UserError(f"--crf: expected 0 to 51, found {args.crf}")
    dub(args)


def main() -> None:
    limit_malloc_arenas()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--video", type=Path, default=EXAMPLE_VIDEO, help="video of a speaking face (default: the bundled example)")
    add(
        "--audio",
        type=Path,
        nargs="+",
        default=[EXAMPLE_AUDIO],
        help="sound or video file to speak, or several, each for a --face of its own (default: the example)",
    )
    add("--output", type=Path, default=Path("dubbed.mp4"), help=".mp4, .mov or .mkv to write (default dubbed.mp4)")
    add("--checkpoint", type=Path, default=BUNDLED_GENERATOR, help="generator (default: the bundled one)")
    add("--landmarks", choices=BACKENDS, default="dlib", help="landmark detector (default dlib)")
    add(
        "--face",
        nargs="+",
        default=["largest"],
        help="largest (default), left, right, the one at X,Y in pixels, or a picture of it, one for each --audio",
    )
    add("--references", metavar="N,N,…", help="frames to take the mouth's looks from (default: chosen)")
    add("--audio-features", choices=list(FEATURE_DIMS), help="default: what the checkpoint needs")
    add(
        "--when-short",
        choices=("stop", "keep"),
        default="stop",
        help="with a sound shorter than the video: stop with it (default), or keep the rest as it was, in silence",
    )
    add("--sharpen", action="store_true", help="give the lips the detail of the source's, as far as it goes")
    add("--side-by-side", action="store_true", help="write the source and the dubbed video beside each other")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    add("--precision", choices=["auto", *DTYPES], default="auto", help="default: the fastest the device has")
    add("--crf", type=int, default=16, help="H.264 quality, 0 lossless to 51 (default 16, visually lossless)")
    add(
        "--resume",
        action="store_true",
        help="keep what is done when stopped, in OUTPUT.pieces, and go on from there when started again like this",
    )
    add("--no-limits", action="store_true", help="dub what is over 8192 pixels wide or high or over 12 hours long")
    run_command(parser, run)


if __name__ == "__main__":
    main()
