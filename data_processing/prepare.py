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
import csv
import json
import os
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from data_processing import audio_features
from data_processing.audio import SAMPLE_RATE, load_audio, save_wav
from data_processing.errors import UserError, command_line
from data_processing.geometry import FaceCrop, crop_radius, crop_size, frame_radii
from data_processing.landmarks import BACKENDS, Landmarks, find_landmarks
from data_processing.sync import MAX_SHIFT, measure_offset
from data_processing.video import FPS, VIDEO_SUFFIXES, probe, read_frames
from data_processing.weights import weight_path
from data_processing.writing import VideoWriter

MIN_FRAMES = 20  # shorter shots cannot give five references apart from the frame to draw
MIN_RADIUS_PX = 24  # smaller faces have no teeth to learn
MAX_RADIUS_RATIO = 1.5  # the authors' limit on how much a face may grow within one shot
MIN_FOUND = 0.8  # share of frames in which the face was seen, not interpolated
CROP_CRF = 12  # training data: nearly lossless
# On held-out people SyncNet was within 42 ms of the known offset for all clips of 2.4 s and more, with confidences
# from 0.10 up; with somebody else's sound clips of 15 s had 0.06 and less. Shorter ones cannot be told.
MIN_SYNC_CONFIDENCE = 0.08
MIN_SYNC_FRAMES = 60
METADATA_NAME = "MANIFEST.tsv"


@dataclass(frozen=True)
class Source:
    """One video to prepare: its person (for the split) and how late its sound is against its picture."""

    path: Path
    person: str
    audio_late_ms: float


@dataclass(frozen=True)
class Settings:
    """What every clip of a dataset has in common; stored in dataset.json and compared on resuming.

    min_sync_confidence: SyncNet's, below which a video is rejected; None to take every sound as it is. Videos of
        less than MIN_SYNC_FRAMES are always taken so.
    """

    mouth_size: int
    landmarks: str
    audio_features: str
    min_sync_confidence: float | None = None


def find_sources(inputs: list[Path], output: Path, person: str | None) -> list[Source]:
    """List the videos of files and folders, with what a MANIFEST.tsv beside them says of each.

    Columns `file`, `person` and `audio_late_ms` are read where they exist. Without a person a video is its own.
    What lies in `output` is left out, so that a dataset inside the folder of its videos does not feed on itself.

    Raises:
        UserError: a path does not exist, or no video is found.
    """
    sources, metadata = [], {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"INPUT: no such file or folder: {given}")
        for path in sorted(given.rglob("*")) if given.is_dir() else [given]:
            hidden = given.is_dir() and (path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."))
            if hidden or path.is_dir() or output.resolve() in path.resolve().parents:
                continue
            row: dict[str, str] = {}
            for folder in path.parents:  # the nearest MANIFEST.tsv that knows the file, up to the folder given
                if folder not in metadata:
                    metadata[folder] = _read_metadata(folder / METADATA_NAME)
                row = metadata[folder].get(path.relative_to(folder).as_posix(), {})
                if row or folder in (given, given.parent):
                    break
            who = person or row.get("person") or path.stem
            sources.append(Source(path, who, float(row.get("audio_late_ms") or 0)))
    if not sources:
        raise UserError(
            f"INPUT: found no video ({', '.join(sorted(VIDEO_SUFFIXES))}) in {', '.join(map(str, inputs))}"
        )
    return list({source.path.resolve(): source for source in sources}.values())  # each once


def _read_metadata(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # with or without the mark that Excel puts first
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected tab-separated text, found something else ({error})") from None
    if rows and "file" not in rows[0]:
        raise UserError(f"{path}: expected a column 'file', found {', '.join(rows[0])}")
    for row in rows:
        try:
            float(row.get("audio_late_ms") or 0)
        except ValueError:
            raise UserError(
                f"{path}: audio_late_ms of {row['file']}: expected a number, found {row['audio_late_ms']!r}"
            ) from None
    return {row["file"]: row for row in rows}


def assign_splits(clips: list[dict], val_percent: int) -> None:
    """Set 'split' of every manifest line to 'train' or 'val': all clips of a person fall on one side.

    Which side a person's name alone decides, so that it stays when others come; but with two people or more
    neither side stays empty. Of a single person the last clips are held out.
    """
    people = sorted({clip["person"] for clip in clips}, key=lambda person: zlib.crc32(person.encode()) % 100)
    val = {person for person in people if zlib.crc32(person.encode()) % 100 < val_percent}
    if len(people) > 1:
        val = (val or {people[0]}) - ({people[-1]} if len(val) == len(people) else set())
        for clip in clips:
            clip["split"] = "val" if clip["person"] in val else "train"
    else:
        held_out = min(len(clips) - 1, max(1, len(clips) * val_percent // 100))
        for number, clip in enumerate(clips):
            clip["split"] = "val" if number >= len(clips) - held_out else "train"


def prepare_video(source: Source, output: Path, settings: Settings) -> tuple[list[dict], list[str]]:
    """Cut one video into face-crop clips, one a shot, and write them.

    Returns:
        The manifest lines of the clips accepted, and why the other shots were not.

    Raises:
        UserError: the video as a whole is of no use (unreadable, no face, no sound).
    """
    probe(source.path, "INPUT")
    waveform = load_audio(source.path, "INPUT")
    landmarks = find_landmarks(source.path, settings.landmarks, flag="INPUT")
    waveform = _earlier(waveform, source.audio_late_ms)
    late_ms, confidence = source.audio_late_ms, None
    if settings.min_sync_confidence is not None:
        shots = _usable_shots(landmarks, waveform)[0]
        if sum(stop - start for _, start, stop in shots) >= MIN_SYNC_FRAMES:
            offset = measure_offset(
                source.path,
                [(a, landmarks.points[a:b], crop_radius(landmarks.points[a:b])) for _, a, b in shots],
                waveform,
            )
            confidence = offset.confidence
            if confidence < settings.min_sync_confidence:
                raise UserError(
                    f"the sound fits the picture nowhere within {MAX_SHIFT} frames "
                    f"(confidence below {settings.min_sync_confidence})"
                )
            waveform = _earlier(waveform, offset.late_ms)
            late_ms += offset.late_ms
    features = audio_features.extract(waveform, settings.audio_features, len(landmarks.points))

    clips = []
    usable, reasons = _usable_shots(landmarks, waveform)
    for number, start, stop in usable:
        digest = zlib.crc32(str(source.path.resolve()).encode())
        name = source.path.stem.replace(".", "_")[:60]  # a dot would be taken for the start of a suffix
        clip_id = f"{name}-{digest:08x}-{number:02d}"
        points = landmarks.points[start:stop]
        radius_px = crop_radius(points)
        sound = waveform[start * SAMPLE_RATE // FPS : stop * SAMPLE_RATE // FPS]
        clip_path = output / "clips" / f"{clip_id}.mp4"
        _write_clip(clip_path, source.path, start, points, radius_px, sound, settings)
        _save_arrays(
            output / "clips" / f"{clip_id}.npz",
            landmarks=points,
            features=features[start:stop],
            found=landmarks.found[start:stop],
        )
        clips.append(
            {
                "id": clip_id,
                "source": str(source.path.resolve()),
                "person": source.person,
                "start_frame": start,
                "num_frames": stop - start,
                "radius_px": round(radius_px, 2),
                "found": round(float(landmarks.found[start:stop].mean()), 3),
                "audio_features": settings.audio_features,
                "audio_late_ms": round(late_ms, 1),
                "sync_confidence": None if confidence is None else round(confidence, 3),
            }
        )
    return clips, reasons


def _earlier(waveform: np.ndarray, late_ms: float) -> np.ndarray:
    """The sound as it is without `late_ms` of delay."""
    late = round(late_ms * SAMPLE_RATE / 1000)
    return waveform[late:] if late >= 0 else np.concatenate([np.zeros(-late, np.float32), waveform])


def _usable_shots(landmarks: Landmarks, waveform: np.ndarray) -> tuple[list[tuple[int, int, int]], list[str]]:
    """Number, first frame and end of the shots to train on, as far as there is sound; and why not the others."""
    num_frames = min(len(landmarks.points), len(waveform) * FPS // SAMPLE_RATE)
    usable, reasons = [], []
    for number, (start, stop) in enumerate(landmarks.shots):
        stop = min(stop, num_frames)
        if reason := unfit_reason(landmarks, start, stop):
            reasons.append(reason)
        else:
            usable.append((number, start, stop))
    return usable, reasons


def unfit_reason(landmarks: Landmarks, start: int, stop: int) -> str | None:
    """Why frames [start, stop) are of no use for training, or None."""
    if stop - start < MIN_FRAMES:
        return f"shot shorter than {MIN_FRAMES} frames"
    if landmarks.found[start:stop].mean() < MIN_FOUND:
        return f"face seen in less than {MIN_FOUND:.0%} of the shot"
    radii = frame_radii(landmarks.points[start:stop])
    if radii.max() < MIN_RADIUS_PX:
        return f"face radius below {MIN_RADIUS_PX} px"
    if radii.max() > MAX_RADIUS_RATIO * radii.min():
        return f"face size changes by more than {MAX_RADIUS_RATIO} times within the shot"
    return None


def _write_clip(
    path: Path, video: Path, start: int, points: np.ndarray, radius_px: float, sound: np.ndarray, settings: Settings
) -> None:
    height, width = crop_size(settings.mouth_size)
    wav = path.with_name(f".{path.stem}.{os.getpid()}.wav")
    try:
        save_wav(wav, sound)
        with VideoWriter(path, width, height, crf=CROP_CRF, sounds=[wav]) as writer:
            frames = read_frames(video, start, start + len(points), "INPUT")
            for frame, frame_points in zip(frames, points, strict=True):
                crop = FaceCrop.from_landmarks(frame_points, radius_px, settings.mouth_size)
                writer.write(crop.extract(frame))
    finally:
        wav.unlink(missing_ok=True)


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


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
        audio_features.extract(np.zeros(SAMPLE_RATE, np.float32), settings.audio_features)
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


def read_jsonl(path: Path) -> list[dict]:
    """Lines of a .jsonl file; a last line cut off by a crash is dropped; a missing file is empty."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            print(f"{path}: dropped an unfinished line")
    return lines


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


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_processing.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="video files or folders of them")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the prepared dataset")
    parser.add_argument(
        "--mouth-size", type=int, default=256, help="mouth size S of the crops (default 256: 416x320)"
    )
    parser.add_argument("--landmarks", choices=BACKENDS, default="dlib", help="landmark detector (default dlib)")
    parser.add_argument(
        "--audio-features", choices=list(audio_features.FEATURE_DIMS), default="whisper", help="default whisper"
    )
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
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
