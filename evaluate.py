"""Score a generator on prepared clips, or anybody's videos beside the real ones."""

import argparse
import csv
import hashlib
import io
import json
import re
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import torch

from data_processing.dataset import load_clips, load_features
from dubbing.generator import DTYPES
from dubbing.pipeline import DubbingPipeline
from evaluation.artifacts import ARTIFACTS
from evaluation.clips import AUDIO_SHIFT, SYNC_FRAMES, evaluate, sync_check
from evaluation.metrics import image_metrics
from evaluation.reports import COLUMNS, SYNC_COLUMNS, markdown_table, print_clip_report, worst_and_best
from evaluation.videos import compare_folders, find_videos, score_synchrony
from models.checkpoint import SYNCNET, load_model
from utils.bundled import BUNDLED_SYNCNET
from utils.command_line import run_command
from utils.device import choose_device, choose_precision
from utils.errors import UserError
from utils.files import write_atomically
from utils.weights import is_cached


def main() -> None:
    run_command(_arguments(), run)


def run(args: argparse.Namespace) -> None:
    if args.frames_per_clip < 1:
        raise UserError(f"--frames-per-clip: expected at least 1, found {args.frames_per_clip}")
    ways = {
        ("checkpoint", "data"): evaluate_clips,
        ("checkpoint", "videos"): evaluate_dubs,
        ("generated", "reference"): evaluate_videos,
    }
    given = {name for way in ways for name in way if getattr(args, name)}
    if given not in map(set, ways):
        expected = ", or ".join(" with ".join(f"--{name}" for name in way) for way in ways)
        found = ", ".join(f"--{name}" for name in sorted(given)) or "none of them"
        raise UserError(f"expected {expected}; found {found}")
    for flag, used, way in (
        ("--sync", args.sync, "data"),
        ("--size", args.size, "data"),
        ("--precision", args.precision != "fp32", "data"),
        ("--cross", args.cross, "videos"),
        ("--own-crops", args.own_crops, "generated"),
    ):
        if used and way not in given:
            raise UserError(f"{flag}: expected --{way} with it, found {' '.join(sorted(given))}")
    device = choose_device(args.device)
    if args.output:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output: cannot make the folder {args.output}: {error.strerror}") from error
    next(run for way, run in ways.items() if set(way) == given)(args, device)


def evaluate_clips(args: argparse.Namespace, device: torch.device) -> None:
    """A generator on prepared clips."""
    loaded = load_model(args.checkpoint, device)
    size = args.size or loaded.mouth_size
    if size < loaded.mouth_size or size % 32:
        raise UserError(
            f"--size: expected a multiple of 32, at least the checkpoint's {loaded.mouth_size}, found {size}"
        )
    clips = load_clips(args.data, args.split, size, loaded.audio_features)
    if args.sync and all(len(clip.frames) < SYNC_FRAMES for clip in clips):
        raise UserError(f"--sync: expected clips of {SYNC_FRAMES} frames or more, found none")
    precision_name = choose_precision(args.precision, device)
    precision = None if precision_name == "fp32" else DTYPES[precision_name]
    report = evaluate(loaded, clips, args.frames_per_clip, image_metrics(device, with_vgg=True), device, precision)
    report["precision"] = precision_name
    if args.sync:
        judge = load_model(BUNDLED_SYNCNET, device, kinds=SYNCNET)
        heard = load_features(args.data, args.split, judge.audio_features)
        if size != loaded.mouth_size:
            clips = load_clips(args.data, args.split, loaded.mouth_size, loaded.audio_features)
        report["sync"] = sync_check(loaded, judge, clips, heard, device, precision)
    report = {"checkpoint": _identified(args.checkpoint), "data": str(args.data), "split": args.split, **report}
    print_clip_report(report)
    if args.output:
        _save(args.output / "evaluation.json", _json(report))


def _identified(checkpoint: Path) -> dict[str, str]:
    with checkpoint.open("rb") as file:
        return {"path": str(checkpoint), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def evaluate_videos(args: argparse.Namespace, device: torch.device) -> None:
    """Anybody's videos beside the real ones."""
    report = compare_folders(args.generated, args.reference, args.frames_per_clip, device, own_crops=args.own_crops)
    _report_videos(report, args)


def evaluate_dubs(args: argparse.Namespace, device: torch.device) -> None:
    """A generator on videos, each dubbed with its own sound and compared with itself; or with another's sound."""
    pipeline = DubbingPipeline(args.checkpoint, device=args.device)
    with nullcontext(args.output) if args.output else TemporaryDirectory() as folder:
        dubbed = Path(folder) / "dubbed"
        if dubbed.resolve() == args.videos.resolve():
            raise UserError(f"--output: expected another folder than that of {args.videos}, found {folder}")
        failed = dub_folder(pipeline, args.videos, dubbed, cross=args.cross)
        if args.cross:
            report = score_synchrony(dubbed, device)
        else:
            report = compare_folders(dubbed, args.videos, args.frames_per_clip, device)
    # what could not be dubbed has no partner, and is named once
    report["unmatched"] = [path for path in report["unmatched"] if Path(path).stem not in failed]
    report |= {"checkpoint": _identified(args.checkpoint), "mouth_size_drawn": pipeline.dubber.mouth_size}
    report["driven_by"] = "another's sound" if args.cross else "their own sound"
    report["failed"] = failed | {name: _of_videos(reason) for name, reason in report["failed"].items()}
    _report_videos(report, args)


def _of_videos(reason: str) -> str:
    """What was wrong with a file of --videos, which dubbing and comparing know by other flags."""
    return re.sub("--(video|audio|generated|reference):", "--videos:", reason)


def dub_folder(pipeline: DubbingPipeline, videos: Path, output: Path, *, cross: bool) -> dict[str, str]:
    """Dub all videos of a folder with their own sound, or `cross` with the next one's, into mp4s of their names.

    Returns:
        Why the others could not be dubbed, by their names.

    Raises:
        UserError: there is no video, not a second one for --cross, or none could be dubbed.
    """
    found = find_videos(videos, "--videos")
    if cross and len(found) < 2:
        raise UserError(f"--cross: expected two videos or more in {videos}, found one")
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("*.mp4"):  # of an earlier run
        old.unlink()
    failed = {}
    names = list(found)
    for number, name in enumerate(names):
        sound = found[names[(number + 1) % len(names)]] if cross else found[name]
        try:
            pipeline.dub(found[name], sound, output / f"{name}.mp4", crf=10)
        except UserError as error:
            failed[name] = _of_videos(str(error))
    if len(failed) == len(found):
        why = next(iter(failed.values())).removeprefix("--videos: ")
        raise UserError(f"--videos: no video of {videos} could be dubbed: {why}")
    return failed


def _report_videos(report: dict[str, Any], args: argparse.Namespace) -> None:
    strips = report.pop("strips", {})
    columns = SYNC_COLUMNS if args.cross else tuple(COLUMNS)
    if args.own_crops:
        columns = tuple(column for column in columns if not column.endswith("_frame"))
    table = markdown_table(report, columns)
    if not (args.cross or args.own_crops):  # these need the source in the dub's framing
        table += f"\nWhat shows that they are dubs:\n\n{markdown_table(report, ARTIFACTS)}"
    print(f"\n{table}")
    looked_at = "" if args.cross else f", {args.frames_per_clip} frames each at most"
    print(
        f"{len(report['videos'])} videos scored at 25 frames/s{looked_at}; {len(report['failed'])} failed, "
        f"{len(report['unmatched'])} without a partner"
    )
    for name, reason in report["failed"].items():
        print(f"failed: {name}: {reason}")
    for path in report["unmatched"]:
        print(f"without a partner: {path}")
    if not is_cached("syncnet_v2"):
        fetch = "python -m scripts.download_weights syncnet_v2"
        print(f"LSE-D and LSE-C are missing: they need the official SyncNet ({fetch})")
    if not args.cross and not is_cached("fid_inception"):
        print("FID is missing: it needs Inception (python -m scripts.download_weights fid_inception)")
    if args.output:
        rows = [{"video": name, **scores} for name, scores in report["videos"].items()]
        listed = io.StringIO()
        writer = csv.DictWriter(listed, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        _save(args.output / "evaluation.json", _json(report))
        _save(args.output / "videos.csv", listed.getvalue().encode())
        _save(args.output / "table.md", table.encode())
        if strips:
            picture = cv2.cvtColor(worst_and_best(report, strips), cv2.COLOR_RGB2BGR)
            _save(args.output / "worst_and_best.png", cv2.imencode(".png", picture)[1].tobytes())


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"""\
Score a checkpoint on prepared clips (--checkpoint, --data), each driven by its own sound: PSNR, SSIM and LPIPS
(AlexNet and VGG) of the mouth box. The same again with the sound moved by {AUDIO_SHIFT} frames either way: the
difference is how much the lips follow the sound.

Or on videos (--checkpoint, --videos): each is dubbed, as by inference.py at --crf 10, with its own sound and
compared with itself; or with --cross with the sound of the next one, of which only the synchrony can be judged.

Or score any method's videos beside the real ones of the same names (--generated, --reference): both are read at 25
frames per second, a generated frame is resized to the real one's size, and some of the frames that both have are
compared: in full, in the face crop (416 x 320) and in the mouth box (256 x 256) that the real video's landmarks
give; with LMD, CSIM, FID, LSE-D and LSE-C (where Inception's and the official SyncNet's files are there) and the
bundled SyncNet's own measures. A second table says what shows that they are dubs (not with --own-crops): seam,
colour shift, tremble, flicker, sharpness of the lips, opening of the mouth in silence.

Intervals are 95 %, by bootstrap over clips or videos.""",
        epilog="Scores depend on the size of the box: compare checkpoints of two sizes with --size, on the same "
        "data.\nThe paper's are for 256 pixels on HDTF.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a generator of this project, or the authors' .pth")
    add("--data", type=Path, help="prepared dataset")
    add("--videos", type=Path, metavar="DIR", help="videos to dub and to compare with their dubs")
    add("--cross", action="store_true", help="with --videos: dub each with the sound of the next")
    add("--generated", type=Path, metavar="DIR", help="videos to score")
    add("--reference", type=Path, metavar="DIR", help="the real videos, named alike")
    add(
        "--own-crops",
        action="store_true",
        help="with --generated: for heads framed otherwise than the real videos: crop each by its own landmarks",
    )
    add("--split", choices=("val", "train"), default="val", help="with --data; default: %(default)s")
    add("--frames-per-clip", type=int, default=8, metavar="N", help="or per video; default: %(default)s")
    add(
        "--size",
        type=int,
        metavar="S",
        help="with --data: compare mouth boxes at this size (default: the checkpoint's)",
    )
    add("--sync", action="store_true", help="with --data: also ask the bundled SyncNet how well the lips fit")
    add(
        "--output", type=Path, metavar="DIR", help="also write evaluation.json there, of videos a table and a sheet"
    )
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    add(
        "--precision", choices=["auto", *DTYPES], default="fp32", help="with --data: the generator's (default fp32)"
    )
    return parser


def _json(report: dict[str, Any]) -> bytes:
    return (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()


def _save(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


if __name__ == "__main__":
    main()
