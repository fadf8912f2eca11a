"""Prepare videos for training: python -m data_processing.prepare INPUT… --output DIR

The prepared dataset is a folder:

    manifest.jsonl   one line per clip: id, source, person, split, num_frames, radius_px, A/V offset, …
    rejected.jsonl   one line per video without a usable clip, with the reason
    prepare.lock     empty; locked while a process prepares videos into the folder
    dataset.json     the settings that all clips share
    identities.jsonl with --person-by identity: one line per video with its speaker and descriptor
    clips/ID.mp4     face crops at 25 fps with synchronised audio
    clips/ID.npz     landmarks (T, 68, 2) and crop radii (T,) in source pixels, features (T, D), found (T,)

With landmarks and radius of a frame, `FaceCrop.from_landmarks` finds its crop in the source video.

A second run with the same folder continues where the first one stopped, by an interruption or an error that is not
the fault of a video, such as a full disk. The bundled SyncNet measures the A/V offset of every video, which is then
removed. Videos without A/V sync are rejected. If no video can be used, the exit code is 2. If some failed,
for a reason that may not be their own, it is 1, and the same command tries them again.
"""

import argparse
import errno
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.clips import MIN_SYNC_CONFIDENCE, Settings, prepare_video
from data_processing.face.detectors import BACKENDS, check_available
from data_processing.face.identities import assign_identities, mean_descriptor
from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS
from data_processing.sources import Source, assign_splits, find_sources, rename_speakers
from data_processing.workers import in_workers
from utils.command_line import run_command
from utils.cores import num_cores
from utils.errors import OutputError, ParameterError, UserError, WeightsError, error_reason
from utils.files import output_errors, read_jsonl, remove_leftovers, write_atomically
from utils.weights import weight_path

BY_IDENTITY = "identity"
logger = logging.getLogger(__name__)


def prepare(
    sources: list[Source],
    output: Path,
    settings: Settings,
    val_percent: int,
    jobs: int,
    scheduler: str | None = None,
    by_identity: bool = False,
) -> int:
    """Prepare the sources that `output` does not contain yet, and print a summary.

    Clips that `output` contains already get the speakers of the sources, too.

    Args:
        sources: the videos.
        output: folder of the prepared dataset; created if it does not exist.
        settings: must be those of the clips that `output` already contains.
        val_percent: percentage of speakers in the validation split.
        jobs: number of videos prepared at the same time, each in a process of its own.
        scheduler: address of a Dask scheduler, whose workers are used instead of `jobs` processes. They must see
            the same folders.
        by_identity: name the speakers by face recognition instead (see `with_identities`).

    Returns:
        The number of videos that failed by an error that may not be due to them. The next call tries them again.

    Raises:
        ParameterError: `output` cannot be created, was prepared with other settings, or is in use by another
            process; there is no scheduler; a worker was killed; or no video can be used.
        UserError: a file cannot be written, or the weights of a network are missing. No video is rejected for it.
    """
    _create_folder(output / "clips")
    with _locked(output):
        _check_settings(output, settings)
        manifest, rejected = output / "manifest.jsonl", output / "rejected.jsonl"
        done = {line["source"] for path in (manifest, rejected) for line in read_jsonl(path)}
        num_todo = sum(str(source.path.resolve()) not in done for source in sources)
        print(f"{len(sources)} videos: {len(sources) - num_todo} already prepared, {num_todo} to do")
        if num_todo:  # without the weights every video would be rejected, and the next run would not try it again
            extract_features(np.zeros(SAMPLE_RATE, np.float32), settings.audio_features)
            check_available(settings.landmarks)
        for path in (manifest, rejected):
            _end_last_line(path)
        if by_identity:
            sources = with_identities(sources, output, jobs, scheduler)
        todo = [source for source in sources if str(source.path.resolve()) not in done]
        _warn_of_unnamed(todo, output)
        failures = _prepare_all(todo, output, settings, jobs, scheduler)
        clips = read_jsonl(manifest)
        named = {str(source.path.resolve()): source.speaker for source in sources if source.is_named}
        if num_renamed := rename_speakers(clips, named):
            print(f"{num_renamed} clips that were prepared before have another speaker now")
        assign_splits(clips, val_percent)
        write_atomically(manifest, lambda file: file.write(_to_jsonl(clips).encode()))
        _print_summary(output, failures)
        reasons = {line["source"]: line["reason"] for line in read_jsonl(rejected)}
    _check_any_usable(sources, clips, failures | reasons)
    return len(failures)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Refuse a second process in the same folder, which would prepare the same videos.

    The lock ends with the process, also if that is killed.
    """
    lock = FileLock(output / "prepare.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(blocking=False))
        except Timeout:
            reason = f"another process is preparing {output}; wait until it has ended, or choose another folder"
            raise ParameterError("output", reason) from None
        except (OSError, NotImplementedError):  # no locks there, or not writable, which the next step reports
            pass
        yield


def _prepare_all(
    todo: list[Source], output: Path, settings: Settings, jobs: int, scheduler: str | None
) -> dict[str, str]:
    """Prepare videos, list their clips or why they were rejected, and return why others failed, by their paths."""
    failures = {}
    work = partial(_prepare_one, output=output.resolve(), settings=settings)
    results = in_workers(work, todo, jobs, scheduler, unit="video", description="preparing")
    try:
        with closing(results):
            for result in results:
                if result.stop:
                    raise result.stop
                source = str(result.source.path.resolve())
                if result.failure:
                    failures[source] = result.failure
                    tqdm.write(f"{result.source.path}: {result.failure}; the next run will try it again")
                elif result.clips:
                    _append(output / "manifest.jsonl", result.clips)
                else:
                    reason = "; ".join(result.reasons) or "no usable shot"
                    _append(output / "rejected.jsonl", [{"source": source, "reason": reason}])
    finally:
        remove_leftovers(output / "clips")
    return failures


@dataclass
class _Result:
    """What a worker returns for one video.

    clips: manifest lines.
    reasons: why the video, or some of its shots, were rejected.
    failure: an error that may not be due to the video. It is then not rejected, and the next run tries it again.
    stop: an error that would recur with other videos.
    """

    source: Source
    clips: list[dict] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    failure: str | None = None
    stop: UserError | None = None


def _prepare_one(source: Source, output: Path, settings: Settings) -> _Result:
    """`prepare_video` in a worker. It does not raise, so that one bad file does not stop the others."""
    cv2.setNumThreads(1)  # the parallelism is over videos
    result = _Result(source)
    try:
        result.clips, result.reasons = prepare_video(source, output, settings)
    except (OutputError, WeightsError) as error:  # a UserError can be sent to another process
        result.stop = UserError(str(error), path=error.path)
    except UserError as error:
        result.reasons = [str(error).removeprefix(f"{source.path}: ").replace(str(source.path), "the file")]
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"{error.filename or output}: cannot be written: {error_reason(error)}"
            result.stop = UserError(reason, path=output)
        result.failure = f"{type(error).__name__}: {error}"
    return result


def with_identities(sources: list[Source], output: Path, jobs: int, scheduler: str | None = None) -> list[Source]:
    """The sources with the speakers that face recognition finds, listed in `output`/identities.jsonl.

    Speakers of videos in that list stay as they are, and so do those of other videos that were prepared already, so
    that a new video of one of them gets the same name. A video without a face is a speaker of its own.

    Args:
        output, jobs, scheduler: as for `prepare`.

    Raises:
        ParameterError: `output` cannot be created, or there is no scheduler.
        WeightsError: the weights of a network cannot be obtained.
        OutputError: the list cannot be written.
    """
    _create_folder(output)
    path = output / "identities.jsonl"
    described = {line["source"] for line in read_jsonl(path)}
    paths = [str(source.path.resolve()) for source in sources]
    prepared = {line["source"]: line["person"] for line in read_jsonl(output / "manifest.jsonl")}
    others = {video: person for video, person in prepared.items() if video not in set(paths)}
    missing = {video for video in others.keys() - described if not Path(video).exists()}
    if missing:
        message = "%d videos in %s are no longer there, so that new videos of their speakers get names of their own"
        logger.warning(message, len(missing), output / "manifest.jsonl", extra={"parameter": "person_by"})
    todo = [Path(video) for video in (*paths, *others) if video not in described | missing]
    if todo:  # not in every worker at once
        check_available("dlib")
        weight_path("identity")
    _end_last_line(path)
    with closing(in_workers(_described, todo, jobs, scheduler, unit="video", description="identities")) as results:
        for line in results:  # the work of hours is not lost
            _append(path, [line])
    lines = [line | {"person": others.get(line["source"], line["person"])} for line in read_jsonl(path)]
    vectors = {line["source"]: line["descriptor"] and np.array(line["descriptor"]) for line in lines}
    persons = assign_identities(vectors, {line["source"]: line["person"] for line in lines if line["person"]})
    lines = [line | {"person": persons[line["source"]]} for line in lines]
    write_atomically(path, lambda file: file.write(_to_jsonl(lines).encode()))
    return [
        replace(source, speaker=persons[video], is_named=True) for source, video in zip(sources, paths, strict=True)
    ]


def _described(video: Path) -> dict:
    """The line of a video in identities.jsonl, without its speaker yet."""
    cv2.setNumThreads(1)  # the parallelism is over videos
    descriptor = mean_descriptor(video)
    numbers = None if descriptor is None else descriptor.round(4).tolist()
    return {"source": str(video), "person": None, "descriptor": numbers}


def _warn_of_unnamed(todo: list[Source], output: Path) -> None:
    """Log how many new videos may show speakers that face recognition has named already."""
    num_unnamed = sum(not source.is_named for source in todo)
    if num_unnamed and (output / "identities.jsonl").exists():
        message = (
            "%d new videos count as speakers of their own, but face recognition named those before; expected %s"
        )
        logger.warning(message, num_unnamed, BY_IDENTITY, extra={"parameter": "person_by"})


def _create_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError("output", f"cannot create the folder {path}: {error_reason(error)}") from None


def _to_jsonl(lines: list[dict]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _append(path: Path, lines: list[dict]) -> None:
    """Append lines to a .jsonl file, all or none: a video some of whose clips are listed counts as done.

    Raises:
        OutputError: the file cannot be written.
    """
    data = _to_jsonl(lines).encode()
    with output_errors(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:  # a nearly full disk takes the beginning
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def _end_last_line(path: Path) -> None:
    """End a last line that was cut off by a crash, so that new lines are not appended to it. Creates the file."""
    with output_errors(path), path.open("a+") as file:
        file.seek(0)
        if (text := file.read()) and not text.endswith("\n"):
            file.write("\n")


def _check_any_usable(sources: list[Source], clips: list[dict], reasons: dict[str, str]) -> None:
    """Raise ParameterError if no source has a clip, with the most common of `reasons` (by source)."""
    paths = {str(source.path.resolve()) for source in sources}
    if not paths or paths & {clip["source"] for clip in clips}:
        return
    counts = Counter(reasons[path] for path in sorted(paths & reasons.keys())).most_common()
    summary = "; ".join(f"{count} × {reason}" for reason, count in counts[:3]) + ("; …" if len(counts) > 3 else "")
    raise ParameterError("inputs", f"none of {len(paths)} videos can be used: {summary}")


def _check_settings(output: Path, settings: Settings) -> None:
    """Store the settings of a new dataset; refuse other settings for an existing one."""
    path = output / "dataset.json"
    if path.exists():
        stored = json.loads(path.read_text())
        if stored != asdict(settings):
            reason = f"{output} was prepared with {stored}, expected {asdict(settings)}; choose another folder"
            raise ParameterError("output", reason)
    else:
        write_atomically(path, lambda file: file.write((json.dumps(asdict(settings)) + "\n").encode()))


def _print_summary(output: Path, failures: dict[str, str]) -> None:
    clips, rejected = read_jsonl(output / "manifest.jsonl"), read_jsonl(output / "rejected.jsonl")
    for split in ("train", "val"):
        part = [clip for clip in clips if clip["split"] == split]
        num_speakers = len({clip["person"] for clip in part})
        minutes = sum(clip["num_frames"] for clip in part) / FPS / 60
        print(f"{split}: {len(part)} clips, {num_speakers} speakers, {minutes:.1f} minutes")
    print(f"rejected: {len(rejected)} videos" + (" (delete rejected.jsonl to try them again)" if rejected else ""))
    _print_counts(line["reason"] for line in rejected)
    if failures:
        print(f"failed: {len(failures)} videos (the same command tries them again)")
        _print_counts(failures.values())
    print(f"dataset: {output}")


def _print_counts(reasons: Iterable[str]) -> None:
    for reason, count in Counter(reasons).most_common():
        print(f"  {count:4d}  {reason}")


def run(args: argparse.Namespace) -> None:
    if args.mouth_size % 8 or args.mouth_size <= 0:
        raise ParameterError("mouth_size", f"expected a multiple of 8, found {args.mouth_size}")
    if not 0 <= args.val_percent <= 100:
        raise ParameterError("val_percent", f"expected 0 to 100, found {args.val_percent}")
    if args.jobs < 1:
        raise ParameterError("jobs", f"expected 1 or more, found {args.jobs}")
    min_confidence = None if args.no_sync else args.min_sync_confidence
    settings = Settings(args.mouth_size, args.landmarks, args.audio_features, min_confidence)
    by_identity = args.person_by == BY_IDENTITY
    sources = find_sources(args.inputs, args.output, args.person, None if by_identity else args.person_by)
    if prepare(sources, args.output, settings, args.val_percent, args.jobs, args.scheduler, by_identity):
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_processing.prepare", description="Prepare videos for training."
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="video files, or folders of video files")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the prepared dataset")
    add("--mouth-size", type=int, default=256, help="mouth size S of the face crops (default 256: 416x320 crops)")
    add("--landmarks", choices=BACKENDS, default="dlib", help="landmark detector (default dlib)")
    add("--audio-features", choices=list(FEATURE_DIMS), default="whisper", help="default whisper")
    speaker = parser.add_mutually_exclusive_group()
    speaker.add_argument(
        "--person",
        help="the speaker of all INPUTs (default: as in MANIFEST.tsv, otherwise a new speaker per video)",
    )
    speaker.add_argument(
        "--person-by",
        metavar="folder|REGEX|identity",
        help="take the speaker from the first folder inside INPUT, or from what REGEX (its first group, if it has "
        "any) finds in the path inside INPUT, or find out by face recognition",
    )
    add(
        "--val-percent",
        type=int,
        default=10,
        help="percentage of speakers held out for validation (default 10)",
    )
    add(
        "--min-sync-confidence",
        type=float,
        default=MIN_SYNC_CONFIDENCE,
        metavar="X",
        help=f"reject videos with a lower sync confidence (default {MIN_SYNC_CONFIDENCE})",
    )
    add("--no-sync", action="store_true", help="do not measure the A/V offset; remove only that in MANIFEST.tsv")
    add("--scheduler", metavar="ADDRESS", help="use a Dask cluster (tcp://…) instead of --jobs")
    add("--jobs", type=int, default=num_cores(), help="videos prepared at a time (default: number of cores)")
    run_command(parser, run)


if __name__ == "__main__":
    main()
