"""Dub a video: generate the mouth region so that the lips follow another audio track.

    python inference.py --video speaker.mp4 --audio speech.wav --output dubbed.mp4
    python inference.py --video photo.jpg --audio speech.wav --output dubbed.mp4
    python inference.py --batch jobs.csv

Without arguments the bundled example is dubbed. The output has the resolution and frame rate of the video; photos
and videos slower than 12 fps come out at 25 fps. It is as long as the longest audio; a shorter video is played
forward and backward. Frames without a face are unchanged.
"""

import argparse
import sys
from math import inf
from pathlib import Path

from tqdm import tqdm

from data_processing.face.detectors import BACKENDS
from data_processing.media.video_reader import check_readable
from data_processing.media.video_writer import ENCODERS, check_writable
from dubbing.pipeline import DubbingPipeline, DubResult
from dubbing.segments import segments_folder
from dubbing.settings import PRECISIONS, WHEN_SHORT, DubSettings, parse_references
from dubbing.signing import ContentSigner
from utils.bundled import BUNDLED_GENERATOR, EXAMPLE_AUDIO, EXAMPLE_VIDEO
from utils.command_line import run_command
from utils.errors import ParameterError
from utils.limits import DEFAULT_LIMITS, NO_LIMITS
from utils.malloc import limit_malloc_arenas


def run(args: argparse.Namespace) -> None:
    """Check the arguments, dub, and print a summary."""
    if args.batch is not None:
        return run_batch(args)
    limit_malloc_arenas()
    settings = DubSettings(
        faces=tuple(args.face),
        references=None if args.references is None else parse_references(args.references),
        when_short=args.when_short,
        texture=args.texture,
        keep_covers=args.keep_covers,
        side_by_side=args.side_by_side,
        crf=args.crf,
        codec=args.codec,
        soundtrack=args.soundtrack,
        sign=args.sign,
        resume=args.resume,
        limits=NO_LIMITS if args.no_limits else DEFAULT_LIMITS,
    )
    heard = [args.soundtrack] if args.soundtrack else []
    for path in (args.video, *args.audio, *heard):  # before the generator is loaded
        check_readable(path)
    check_writable(args.output)
    if args.sign:
        ContentSigner(*args.sign, args.output)
    checkpoint = args.checkpoint
    if args.adapt is not None or args.adapted is not None:
        checkpoint = adapted_checkpoint(args, settings)
    pipeline = DubbingPipeline(checkpoint, device=args.device, precision=args.precision, landmarks=args.landmarks)
    with tqdm(unit="frame", desc="dubbing", delay=2) as bar:

        def progress(done: int, expected: int) -> None:
            bar.total = expected
            bar.update(done - bar.n)

        try:
            result = pipeline.dub(args.video, args.audio, args.output, settings, progress)
        except KeyboardInterrupt:
            folder = segments_folder(args.output)
            if args.resume and folder.exists():
                raise KeyboardInterrupt(f"completed segments are in {folder}; the same command continues") from None
            raise
    print(summary(args.output, result))


def run_batch(args: argparse.Namespace) -> None:
    """Dub the rows of a jobs file; exit code 1 if some failed. The other flags apply to all rows."""
    from dubbing.batch import dub_all  # which a single dub does not need

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_batch_flags(own)
    _, common = own.parse_known_args()
    line, num_failed = dub_all(args.batch, build_parser(), common, args.jobs, args.scheduler)
    print(line)
    if num_failed:
        sys.exit(1)


def adapted_checkpoint(args: argparse.Namespace, settings: DubSettings) -> Path:
    """The generator adapted to the video: from the cache or --adapted, or adapted now."""
    from training.adapt import AdaptationBar, adapted_generator  # whose libraries a dub without it does not need

    if len(settings.faces) > 1 or len(args.audio) > 1:
        found = f"{len(settings.faces)} and {len(args.audio)}"
        raise ParameterError("adapt", f"expected one --face to adapt to and one --audio, found {found}")
    minutes = None if args.adapt is True else args.adapt
    if minutes is not None and not 0 < minutes < inf:
        raise ParameterError("adapt", f"expected a number of minutes above 0, found {minutes:g}")
    with AdaptationBar() as bar:
        return adapted_generator(
            args.video,
            args.adapted,
            checkpoint=args.checkpoint,
            minutes=minutes,
            device=args.device,
            landmarks=args.landmarks,
            face=settings.faces[0],
            limits=settings.limits,
            progress=bar,
        )


def summary(output: Path, result: DubResult) -> str:
    """One line about a finished dub."""
    num_unchanged = result.num_frames - result.num_dubbed
    return (
        f"{output}: {result.num_frames} frames ({float(result.num_frames / result.fps):.1f} s at "
        f"{float(result.fps):g} fps) in {result.total_s:.1f} s, the first after {result.first_frame_s:.1f} s"
        + (f"; {num_unchanged} frames left unchanged" if num_unchanged else "")
    )


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch", type=Path, metavar="FILE", help="CSV file with a dub in each row (docs/batch.md)")
    add("--jobs", type=int, default=1, metavar="N", help="dubs of a batch at the same time (default 1)")
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="dub a batch on a Dask cluster (tcp://…) instead of --jobs",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--video", type=Path, default=EXAMPLE_VIDEO, help="source video or photo (default: the bundled example)")
    add(
        "--audio",
        type=Path,
        nargs="+",
        default=[EXAMPLE_AUDIO],
        help="driving audio, an audio or video file; several files drive one --face each (default: the example)",
    )
    add(
        "--soundtrack",
        type=Path,
        metavar="FILE",
        help="audio track of the output instead of the driving audio, such as speech with music; cut to the video",
    )
    add("--output", type=Path, default=Path("dubbed.mp4"), help=".mp4, .mov or .mkv to write (default dubbed.mp4)")
    add(
        "--sign",
        type=Path,
        nargs=2,
        metavar=("CERTIFICATES", "KEY"),
        help="sign the output with content credentials (C2PA): PEM files of your certificate, followed by those of "
        "its issuers, and of its private key",
    )
    add("--checkpoint", type=Path, default=BUNDLED_GENERATOR, help="generator (default: the bundled one)")
    add(
        "--adapt",
        nargs="?",
        type=float,
        const=True,
        metavar="MINUTES",
        help="first adapt the generator to the video, for MINUTES (default 5, on a GPU 1), as far as the sync of "
        "its lips with other speech allows; the result is cached",
    )
    add("--adapted", type=Path, metavar="FILE", help="as --adapt, but the result is FILE; used if it exists")
    add("--landmarks", choices=BACKENDS, default="dlib", help="landmark detector (default dlib)")
    add(
        "--face",
        nargs="+",
        default=["largest"],
        help="face to dub: largest (default), left, right, X,Y (nearest to this position in pixels) or a photo of "
        "the speaker; one for each --audio",
    )
    add("--references", metavar="N,N,…", help="reference frames by number (default: chosen in each shot)")
    add(
        "--when-short",
        choices=WHEN_SHORT,
        default="stop",
        help="if the audio is shorter than the video: stop with it (default) or keep the rest unchanged and silent",
    )
    add(
        "--no-texture",
        dest="texture",
        action="store_false",
        help="leave the mouth as generated, without texture from other frames of the shot",
    )
    add(
        "--no-keep-covers",
        dest="keep_covers",
        action="store_false",
        help="draw the mouth over hands, microphones, cups and captions before it",
    )
    add("--side-by-side", action="store_true", help="write source and dubbed frames beside each other")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    add(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="default: the fastest the device supports",
    )
    add("--crf", type=int, default=16, help="quality, 0 (lossless) to 51 (default 16, visually lossless)")
    add("--codec", choices=ENCODERS, default="h264", help="of the output (default h264, the most widely played)")
    add(
        "--resume",
        action="store_true",
        help="keep completed segments in OUTPUT.segments when interrupted; the same command continues from them",
    )
    add(
        "--no-limits",
        action="store_true",
        help="disable the sanity limits: frames over 8192 pixels wide or high, gaps over a minute between frames, "
        "audio tracks that start over an hour late, dubs over 12 hours",
    )
    add_batch_flags(parser)
    return parser


def main() -> None:
    run_command(build_parser(), run)


if __name__ == "__main__":
    main()
