"""Score a generator on prepared clips, or anybody's videos beside the real ones."""

import argparse
import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import cv2
import torch

from data_processing.dataset import load_clips
from data_processing.errors import UserError, command_line
from data_processing.sync import BUNDLED
from data_processing.video import FPS
from evaluation.crops import AUDIO_SHIFT, SYNC_FRAMES, evaluate, sync_check
from evaluation.metrics import LPIPS
from evaluation.videos import compare_folders, markdown_table, worst_and_best
from models.checkpoint import SYNCNET, load_model
from models.device import choose_device


@command_line
def main() -> None:
    args = _arguments()
    if args.frames_per_clip < 1:
        raise UserError(f"--frames-per-clip: expected at least 1, found {args.frames_per_clip}")
    ways = {"--checkpoint": ("--data", args.checkpoint, args.data)}
    ways |= {"--generated": ("--reference", args.generated, args.reference)}
    chosen = [way for way, (_, *paths) in ways.items() if any(paths)]
    for way in chosen:
        if not all(ways[way][1:]):
            raise UserError(f"{way} and {ways[way][0]}: expected both, found one")
    if len(chosen) != 1:
        raise UserError(f"expected --checkpoint with --data, or --generated with --reference; found {len(chosen)}")
    device = choose_device(args.device)
    if args.output:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output: cannot make the folder {args.output}: {error.strerror}") from error
    (evaluate_checkpoint if args.checkpoint else evaluate_videos)(args, device)


def evaluate_checkpoint(args: argparse.Namespace, device: torch.device) -> None:
    """A generator on prepared clips."""
    loaded = load_model(args.checkpoint, device)
    size = args.size or loaded.mouth_size
    if size < loaded.mouth_size or size % 32:
        raise UserError(
            f"--size: expected a multiple of 32, at least the checkpoint's {loaded.mouth_size}, found {size}"
        )
    clips = load_clips(args.data, args.split, size, loaded.audio_features)
    report = evaluate(loaded, clips, args.frames_per_clip, measures(device, with_vgg=True), device)
    if args.sync:
        judge = load_model(BUNDLED, device, kinds=SYNCNET)
        if size != loaded.mouth_size:
            clips = load_clips(args.data, args.split, loaded.mouth_size, loaded.audio_features)
        heard = clips
        if judge.audio_features != loaded.audio_features:
            heard = load_clips(args.data, args.split, loaded.mouth_size, judge.audio_features)
        report["sync"] = sync_check(loaded, judge, clips, heard, device)
    report = {"checkpoint": _identified(args.checkpoint), "data": str(args.data), "split": args.split, **report}
    _print_report(report)
    if args.output:
        _save(args.output / "evaluation.json", _json(report))


def _identified(checkpoint: Path) -> dict[str, str]:
    with checkpoint.open("rb") as file:
        return {"path": str(checkpoint), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def evaluate_videos(args: argparse.Namespace, device: torch.device) -> None:
    """Anybody's videos beside the real ones."""
    report = compare_folders(args.generated, args.reference, args.frames_per_clip, device)
    strips = report.pop("strips")
    print(f"\n{markdown_table(report)}")
    print(
        f"{len(report['videos'])} videos scored at 25 frames/s, {args.frames_per_clip} frames each at most; "
        f"{len(report['failed'])} failed, {len(report['without_partner'])} without a partner"
    )
    for name, reason in report["failed"].items():
        print(f"failed: {name}: {reason}")
    for path in report["without_partner"]:
        print(f"without a partner: {path}")
    if "lse_d" not in report["means"]:
        print(
            "LSE-D and LSE-C are missing: they need the official SyncNet (python scripts/download_weights.py "
            "syncnet_v2) and videos with sound"
        )
    if args.output:
        rows = [{"video": name, **scores} for name, scores in report["videos"].items()]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        picture = cv2.cvtColor(worst_and_best(report, strips), cv2.COLOR_RGB2BGR)
        _save(args.output / "evaluation.json", _json(report))
        _save(args.output / "videos.csv", table.getvalue().encode())
        _save(args.output / "table.md", markdown_table(report).encode())
        _save(args.output / "worst_and_best.png", cv2.imencode(".png", picture)[1].tobytes())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"""\
Score a checkpoint on prepared clips (--checkpoint, --data), each driven by its own sound: PSNR, SSIM and LPIPS
(AlexNet) of the mouth box. The same again with the sound moved by {AUDIO_SHIFT} frames either way: the difference
is how much the lips follow the sound.

Or score any method's videos beside the real ones of the same names (--generated, --reference): both are read at 25
frames per second, a generated frame is resized to the real one's size, the frames that both have are compared: in
full, in the face crop (416 x 320) and in the mouth box (256 x 256) that the real video's landmarks give; with LMD,
CSIM, LSE-D and LSE-C (where the official SyncNet's file is there) and the bundled SyncNet's own measures.

Intervals are 95 %, by bootstrap over clips or videos.""",
        epilog="Scores depend on the size of the box: compare checkpoints of two sizes with --size, on the same "
        "data.\nThe paper's are for 256 pixels on HDTF.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a generator of this project, or the authors' .pth")
    add("--data", type=Path, help="prepared dataset")
    add("--generated", type=Path, metavar="DIR", help="videos to score")
    add("--reference", type=Path, metavar="DIR", help="the real videos, named alike")
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
    return parser.parse_args()


def _print_report(report: dict[str, Any]) -> None:
    size, seconds = report["compared_at"], report["audio_shift_frames"] / FPS
    print(
        f"checkpoint {report['checkpoint']['path']} (sha256 {report['checkpoint']['sha256'][:12]}), "
        f"S = {report['mouth_size']}"
    )
    print(
        f"{report['data']}, {report['split']}: {report['num_frames']} frames of {report['num_clips']} clips of "
        f"{report['num_people']} people; mouth box {size} × {size}, LPIPS with AlexNet, 95 % intervals over clips\n"
    )
    print(f"{'':24}{'PSNR ↑':26}{'SSIM ↑':26}{'LPIPS ↓'}")
    rows = {"matched": "matched sound", "shifted": f"sound ± {seconds:.2f} s", "difference": "difference"}
    digits = {"psnr": 2, "ssim": 4, "lpips": 4}
    for sound, label in rows.items():
        cells = []
        for name, count in digits.items():
            mean, interval = report[sound][name]["mean"], report[sound][name]["interval"]
            ends = "[one clip]" if interval is None else f"[{interval[0]:.{count}f}, {interval[1]:.{count}f}]"
            cells.append(f"{f'{mean:.{count}f} {ends}':26}")
        print(f"{label:24}{''.join(cells)}".rstrip())

    if "sync" in report:
        sync = report["sync"]
        print(f"\nbundled SyncNet (not LSE), {sync['num_clips']} clips of {SYNC_FRAMES} frames")
        for name in ("real", "generated"):
            print(
                f"{name:24}score {sync[name]['score']:.3f}   confidence {sync[name]['confidence']:.3f}   "
                f"{sync[name]['within_one_frame']:.0%} within a frame of step"
            )

    width = max(24, *(len(person) + 2 for person in report["people"]))
    print(f"\n{'by person':{width}}{'frames':>6}   PSNR    SSIM   LPIPS   the same, sound ± {seconds:.2f} s")
    for person, found in report["people"].items():
        cells = [
            f"{found[sound][name]:6.{count}f}" for sound in ("matched", "shifted") for name, count in digits.items()
        ]
        print(f"{person:{width}}{found['frames']:>6}  {'  '.join(cells)}")


def _json(report: dict[str, Any]) -> bytes:
    return (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()


def _save(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
