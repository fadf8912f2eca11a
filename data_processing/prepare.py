"""Videos -> a prepared dataset: python -m data_processing.prepare INPUT… --output DIR

The dataset is a folder a person can open:

    manifest.jsonl   one line a clip: id, source, person, split, frames, radius, features, offset
    rejected.jsonl   one line a video that gave nothing, with the reason
    clips/ID.mp4     the face crops, 25 fps, with their sound in step
    clips/ID.npz     landmarks (T, 68, 2) in source pixels, features (T, D), found (T,)

A second run on the same folder goes on where the first stopped. Sound that is late or early against its picture is
put right by what the bundled SyncNet measures; a video whose sound fits its picture nowhere is rejected.
"""

import argparse
import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.clips import MIN_SYNC_CONFIDENCE, Settings, prepare_video
from data_processing.face.detectors import BACKENDS
from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS
from data_processing.sources import Source, assign_splits, find_sources
from utils.command_line import run_command
from utils.errors import UserError
from utils.files import read_jsonl
from utils.weights import weight_path


def _prepare_one(
    source: Source, output: Path, settings: Settings
) -> tuple[Source, list[dict], list[str], str | None]:
    """`prepare_video` that never raises: one bad file does not stop the rest.

    The last value is what went wrong that was no fault of the video's; such a video is tried again next time.
    """
    import cv2

    cv2.setNumThreads(1)  # the videos are the parallel part
    try:
        return source, *prepare_video(source, output, settings), None
    except UserError as error:
        return source, [], [str(error).replace(str(source.path), "the file")], None
    except Exception as error:
        return source, [], [], f"{type(error).__name__}: {error}"


def prepare(
    sources: list[Source],
    output: Path,
    settings: Settings,
    val_percent: int,
    jobs: int,
    scheduler: str | None = None,
) -> None:
    """Prepare all sources that `output` does not hold yet, and print a summary.

    With the address of a Dask `scheduler` its workers do it instead of `jobs` processes here; they must see the
    same folders.
    """
    try:
        (output / "clips").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {output / 'clips'}: {error.strerror}") from None
    _check_settings(output / "dataset.json", settings)
    manifest, rejected = output / "manifest.jsonl", output / "rejected.jsonl"
    done = {line["source"] for path in (manifest, rejected) for line in read_jsonl(path)}
    todo = [source for source in sources if str(source.path.resolve()) not in done]
    print(f"{len(sources)} videos, {len(sources) - len(todo)} of them done before, {len(todo)} to do")
    if todo:  # without the models every video would be rejected, and be taken as done by the next run
        extract_features(np.zeros(SAMPLE_RATE, np.float32), settings.audio_features)
        if settings.landmarks == "dlib":
            weight_path("landmarks68")
    for path in (manifest, rejected):
        _end_last_line(path)
    engine = _dask(scheduler) if scheduler else joblib.parallel_config(n_jobs=jobs)
    with engine, manifest.open("a") as accepted_file, rejected.open("a") as rejected_file:
        results = joblib.Parallel(return_as="generator_unordered")(
            joblib.delayed(_prepare_one)(source, output.resolve(), settings) for source in todo
        )
        for source, clips, reasons, failure in tqdm(results, total=len(todo), unit="video", desc="preparing"):
            if failure:
                tqdm.write(f"{source.path}: {failure}; it will be tried again by the next run")
                continue
            accepted_file.write("".join(json.dumps(clip) + "\n" for clip in clips))
            if not clips:
                line = {"source": str(source.path.resolve()), "reason": "; ".join(reasons) or "no usable shot"}
                rejected_file.write(json.dumps(line) + "\n")
            accepted_file.flush()
            rejected_file.flush()
    clips = read_jsonl(manifest)
    assign_splits(clips, val_percent)
    partial = manifest.with_name(f".{manifest.name}.partial")
    partial.write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    partial.replace(manifest)
    _summarise(output)


def _dask(address: str) -> joblib.parallel_config:
    """A context in which joblib works through a Dask cluster."""
    from distributed import Client

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"--scheduler {address}: expected a Dask scheduler, found: {error}") from None
    return joblib.parallel_config("dask", n_jobs=-1, client=client)


def _end_last_line(path: Path) -> None:
    """After a crash the last line may be cut off: what is added must not become part of it."""
    if path.exists() and (text := path.read_text()) and not text.endswith("\n"):
        with path.open("a") as file:
            file.write("\n")


def _check_settings(path: Path, settings: Settings) -> None:
    if path.exists():
        before = json.loads(path.read_text())
        if before != asdict(settings):
            raise UserError(f"--output: {path.parent} was prepared with {before}, now asked for {asdict(settings)}")
    else:
        path.write_text(json.dumps(asdict(settings)) + "\n")


def _summarise(output: Path) -> None:
    clips, rejected = read_jsonl(output / "manifest.jsonl"), read_jsonl(output / "rejected.jsonl")
    for split in ("train", "val"):
        part = [clip for clip in clips if clip["split"] == split]
        minutes = sum(clip["num_frames"] for clip in part) / FPS / 60
        print(f"{split}: {len(part)} clips, {len({c['person'] for c in part})} people, {minutes:.1f} minutes")
    print(f"rejected: {len(rejected)} videos" + (" (to try them again delete rejected.jsonl)" if rejected else ""))
    for reason, count in Counter(line["reason"] for line in rejected).most_common():
        print(f"  {count:4d}  {reason}")
    print(f"dataset: {output}")


def run(args: argparse.Namespace) -> None:
    if args.mouth_size % 8 or args.mouth_size <= 0:
        raise UserError(f"--mouth-size: expected a multiple of 8, found {args.mouth_size}")
    if not 0 <= args.val_percent <= 100:
        raise UserError(f"--val-percent: expected 0 to 100, found {args.val_percent}")
    if args.jobs < 1:
        raise UserError(f"--jobs: expected 1 or more, found {args.jobs}")
    confidence = None if args.no_sync else args.min_sync_confidence
    settings = Settings(args.mouth_size, args.landmarks, args.audio_features, confidence)
    sources = find_sources(args.inputs, args.output, args.person)
    prepare(sources, args.output, settings, args.val_percent, args.jobs, args.scheduler)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_processing.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="video files or folders of them")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the prepared dataset")
    parser.add_argument(
        "--mouth-size", type=int, default=256, help="mouth size S of the crops (default 256: 416x320)"
    )
    parser.add_argument("--landmarks", choices=BACKENDS, default="dlib", help="landmark detector (default dlib)")
    parser.add_argument("--audio-features", choices=list(FEATURE_DIMS), default="whisper", help="default whisper")
    parser.add_argument("--person", help="the one person of all INPUTs (default: MANIFEST.tsv, else one a video)")
    parser.add_argument(
        "--val-percent", type=int, default=10, help="people held out for validation (default 10 %%)"
    )
    parser.add_argument(
        "--min-sync-confidence",
        type=float,
        default=MIN_SYNC_CONFIDENCE,
        metavar="X",
        help=f"reject videos whose sound SyncNet is less sure about (default {MIN_SYNC_CONFIDENCE})",
    )
    parser.add_argument(
        "--no-sync", action="store_true", help="take every sound as it is, neither moved nor rejected"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="prepare on a Dask cluster (tcp://…) in place of --jobs"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="videos at a time (default: all cores)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
