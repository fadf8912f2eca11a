"""Score a generator on prepared clips or on videos, or the videos of any method against the ground truth."""

import argparse
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from data_processing.media.audio_io import media_duration_s
from data_processing.media.video_reader import probe
from data_processing.workers import cancelled
from dubbing.generator import DTYPES
from dubbing.pipeline import DubbingPipeline
from dubbing.settings import DubSettings
from evaluation import reports
from evaluation.clips import AUDIO_SHIFT
from evaluation.datasets import Evaluation, evaluate_dataset
from evaluation.dubs import dub_folder
from evaluation.folders import compare_folders, score_leakage, score_synchrony
from utils.command_line import print_result, run_command
from utils.device import choose_device, choose_precision
from utils.errors import MediaError, ParameterError, UserError

EPILOG = (
    "Intervals are 95 %, over speakers. Scores depend on the size of the mouth box: to compare checkpoints of "
    "different sizes, give the same --size on the same data. The paper's are for S = 256 on HDTF."
)
DUB_CRF = 10  # of dubs to be scored: compression hardly changes the scores


def main() -> None:
    run_command(_parser(), run)


def run(args: argparse.Namespace) -> None:
    modes = {
        ("checkpoint", "data"): evaluate_clips,
        ("checkpoint", "videos"): evaluate_dubs,
        ("generated", "ground_truth"): evaluate_videos,
    }
    given = {name for mode in modes for name in mode if getattr(args, name)}
    if given not in map(set, modes):
        expected = ", or ".join(" with ".join(map(_flag, mode)) for mode in modes)
        raise UserError(f"expected {expected}; found {', '.join(map(_flag, sorted(given))) or 'none of them'}")
    for option, is_set, needed in (
        ("split", args.split != "val", "data"),
        ("sync", args.sync, "data"),
        ("size", args.size, "data"),
        ("precision", args.precision != "fp32", "data"),
        ("cross", args.cross, "videos"),
        ("silent", args.silent, "videos"),
        ("no_texture", not args.texture, "videos"),
        ("no_keep_covers", not args.keep_covers, "videos"),
        ("own_crops", args.own_crops, "generated"),
    ):
        if is_set and needed not in given:
            raise UserError(f"{_flag(option)}: needs {_flag(needed)}")
    if args.jobs < 1:
        raise ParameterError("jobs", f"expected 1 or more, found {args.jobs}")
    if args.scheduler and "videos" in given and not args.output:
        raise ParameterError("scheduler", "needs --output: a folder for the dubs that the workers see too")
    device = choose_device(args.device)
    if args.output:
        reports.create_folder(args.output)
    next(evaluate for mode, evaluate in modes.items() if set(mode) == given)(args, device)


def evaluate_clips(args: argparse.Namespace, device: torch.device) -> None:
    name = choose_precision(args.precision, device)
    precision = None if name == "fp32" else DTYPES[name]
    what = (args.checkpoint, args.data, args.split, args.size, args.frames_per_clip, device, precision)
    report = evaluate_dataset(Evaluation(*what), with_sync=args.sync, jobs=args.jobs, scheduler=args.scheduler)
    report = {"data": str(args.data), "split": args.split, **report, "precision": name}
    report = {"checkpoint": reports.checkpoint_identity(args.checkpoint), **report}
    show = print if args.output else print_result
    show(reports.clip_summary(report))
    if args.output:
        reports.write_report(args.output, report)


def evaluate_videos(args: argparse.Namespace, device: torch.device) -> None:
    folders = (args.generated, args.ground_truth)
    options = {"own_crops": args.own_crops, "jobs": args.jobs, "scheduler": args.scheduler}
    report, strips = compare_folders(*folders, args.frames_per_clip, device, **options)
    columns = reports.OWN_CROPS_COLUMNS if args.own_crops else tuple(reports.COLUMNS)
    _print_and_write(report, strips, columns, args, artifacts=not args.own_crops)


def evaluate_dubs(args: argparse.Namespace, device: torch.device) -> None:
    if args.cross and args.silent:
        raise ParameterError("silent", "expected without --cross")
    pipeline = DubbingPipeline(args.checkpoint, device=args.device)
    workers = {"jobs": args.jobs, "scheduler": args.scheduler}
    load_there = partial(DubbingPipeline, args.checkpoint.absolute(), device=args.device)
    load = load_there if args.scheduler or args.jobs > 1 else lambda: pipeline
    driven_by = "next" if args.cross else "silence" if args.silent else "own"
    strips: dict[str, np.ndarray] = {}
    with nullcontext(args.output) if args.output else TemporaryDirectory() as folder:
        dubbed = Path(folder) / "dubbed"
        if dubbed.resolve() == args.videos.resolve():
            raise ParameterError("output", f"{folder}: the dubs would replace the videos; choose another folder")
        settings = DubSettings(texture=args.texture, keep_covers=args.keep_covers, crf=DUB_CRF)
        progress = _end_if_cancelled if args.scheduler else None
        dub = partial(_dub, settings=settings, with_own_audio=driven_by == "own", progress=progress)
        failed = dub_folder(dub, args.videos, dubbed, driven_by, **workers, load=load)
        if args.cross:
            report, columns = score_synchrony(dubbed, args.videos, device, **workers), reports.SYNC_COLUMNS
        elif args.silent:
            report, columns = score_leakage(dubbed, args.videos, **workers), reports.LEAKAGE_COLUMNS
        else:
            options = {"second_half": True, **workers}
            report, strips = compare_folders(dubbed, args.videos, args.frames_per_clip, device, **options)
            columns = tuple(reports.COLUMNS)
    report["unmatched"] = [path for path in report["unmatched"] if Path(path).stem not in failed]
    report["failed"] = failed | report["failed"]
    report["checkpoint"] = reports.checkpoint_identity(args.checkpoint)
    report["generator_mouth_size"] = pipeline.generator.mouth_size
    report["texture"], report["keep_covers"] = settings.texture, settings.keep_covers
    report["driven_by"] = {"own": "matched audio", "next": "mismatched audio", "silence": "silence"}[driven_by]
    _print_and_write(report, strips, columns, args, artifacts=driven_by == "own")


def _dub(
    pipeline: DubbingPipeline,
    video: Path,
    audio: Path,
    output: Path,
    *,
    settings: DubSettings,
    with_own_audio: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Dub a video; with its own audio, of which the second half is scored, choose from the first half only."""
    if with_own_audio:
        duration_s = min(probe(video).duration_s, media_duration_s(audio))
        if not duration_s:
            raise MediaError(video, "states no duration, so that its halves are not known; convert it first")
        settings = replace(settings, chosen_before_s=duration_s / 2)
    pipeline.dub(video, audio, output, settings, progress)


def _end_if_cancelled(*_: int) -> None:
    """Ends the dub of a worker whose command was interrupted: a dub that nobody scores would still be written."""
    if cancelled():
        raise CancelledError


def _print_and_write(
    report: dict,
    strips: dict[str, np.ndarray],
    columns: tuple[str, ...],
    args: argparse.Namespace,
    *,
    artifacts: bool,
) -> None:
    tables = reports.video_tables(report, columns, artifacts=artifacts)
    show = print if args.output else print_result
    show(f"\n{tables}\n{reports.video_summary(report, columns)}")
    if args.output:
        reports.write_report(args.output, report)
        reports.write_video_tables(args.output, report, tables, strips)


def _frames(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ParameterError("frames_per_clip", f"expected at least 1, or all, found {text}")
    return int(text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"{__doc__} There are three modes.", epilog=EPILOG)
    add = parser.add_argument_group(
        "a generator on clips (--checkpoint and --data)",
        "PSNR, SSIM and LPIPS of the mouth box on a prepared dataset, with matched audio and with audio shifted by "
        f"{AUDIO_SHIFT} frames in both directions. The difference shows how much the lips follow the audio.",
    ).add_argument
    add("--checkpoint", type=Path, metavar="FILE", help="generator, of this project or the authors' .pth")
    add("--data", type=Path, metavar="DIR", help="prepared dataset")
    add("--split", choices=("val", "train"), default="val", help="default: %(default)s")
    add("--size", type=int, metavar="S", help="size of the compared mouth boxes (default: the checkpoint's)")
    add("--precision", choices=["auto", *DTYPES], default="fp32", help="default: %(default)s")
    add("--sync", action="store_true", help="also score the A/V sync with the bundled SyncNet")
    add = parser.add_argument_group(
        "a generator on videos (--checkpoint and --videos)",
        f"Dubs each video with its own audio, as inference.py --crf {DUB_CRF}, and compares dub and video. "
        "Reference frames and texture come from the first half of each video; the second half is scored.",
    ).add_argument
    add("--videos", type=Path, metavar="DIR", help="videos to dub")
    add("--cross", action="store_true", help="dub each with the audio of the next one; scores only the A/V sync")
    add("--silent", action="store_true", help="dub each with silence; scores only how far the source's lips leak")
    add("--no-texture", dest="texture", action="store_false", help="as inference.py --no-texture")
    add("--no-keep-covers", dest="keep_covers", action="store_false", help="as inference.py --no-keep-covers")
    add = parser.add_argument_group(
        "the videos of any method (--generated and --ground-truth)",
        "Compares videos of any method with the real videos of the same names: PSNR, SSIM and LPIPS of full frame, "
        "face crop and mouth box, LMD, CSIM, FID, LSE-D, LSE-C, A/V sync, and dubbing artifacts (seam, colour "
        "shift, jitter, flicker, sharpness, mouth opening). Both are read at 25 fps; generated frames are "
        "resized to the real ones. FID and LSE need weights from scripts.download_weights.",
    ).add_argument
    add("--generated", type=Path, metavar="DIR", help="videos to score")
    add("--ground-truth", type=Path, metavar="DIR", help="real videos with the same names")
    add("--own-crops", action="store_true", help="for heads in another framing: crop each by its own landmarks")
    add = parser.add_argument_group("all modes").add_argument
    add("--jobs", type=int, default=1, metavar="N", help="processes that dub and score (default: %(default)s)")
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="use a Dask cluster (tcp://…) that sees the same files instead of --jobs",
    )
    text = "frames of a clip or video that are compared, or all (default: %(default)s)"
    add("--frames-per-clip", type=_frames, default=8, metavar="N", help=text)
    add("--output", type=Path, metavar="DIR", help="write evaluation.json here, for videos tables, dubs in dubbed/")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    return parser


if __name__ == "__main__":
    main()
