"""Reports of an evaluation: columns, means over videos, Markdown tables, the text a command prints, and files."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_processing.media.video_reader import FPS
from evaluation.artifacts import ARTIFACTS
from evaluation.clips import SYNC_FRAMES
from evaluation.metrics import SSIM_NOTE, mean_interval
from utils.errors import OutputError, error_reason
from utils.files import write_atomically
from utils.weights import is_cached

SYNC_COLUMNS = ("lse_d", "lse_c", "lse_offset", "sync_confidence", "sync_offset_ms")
# Column name: label, number of decimals, whether higher is better (None: neither). The paper's columns come first.
COLUMNS = {
    "ssim_face": ("SSIM, face crop", 4, True),
    "psnr_face": ("PSNR, face crop", 2, True),
    "lpips_face": ("LPIPS (AlexNet), face crop", 4, False),
    "lse_d": ("LSE-D", 3, False),
    "lse_c": ("LSE-C", 3, True),
    "lse_offset": ("LSE A/V offset, absolute, frames", 1, None),
    "ssim_mouth": ("SSIM, mouth box", 4, True),
    "psnr_mouth": ("PSNR, mouth box", 2, True),
    "lpips_mouth": ("LPIPS (AlexNet), mouth box", 4, False),
    "ssim_frame": ("SSIM, full frame", 4, True),
    "psnr_frame": ("PSNR, full frame", 2, True),
    "lpips_vgg_face": ("LPIPS (VGG), face crop", 4, False),
    "lpips_vgg_mouth": ("LPIPS (VGG), mouth box", 4, False),
    "fid": ("FID, face crop", 1, False),
    "lmd": ("LMD, face-crop pixels", 2, False),
    "csim": ("CSIM (dlib)", 3, True),
    "sync_confidence": ("bundled SyncNet's confidence (not LSE)", 3, True),
    "sync_offset_ms": ("bundled SyncNet's A/V offset, absolute, ms", 0, None),
}
LEAKAGE = {
    "leakage": ("leakage, 0: none, 1: the source's lips", 2, False),
    "confidence_with_source_audio": ("bundled SyncNet's confidence with the source's audio", 3, False),
    "confidence_of_source": ("the same of the source", 3, None),
}
OWN_CROPS_COLUMNS = tuple(column for column in COLUMNS if not column.endswith("_frame"))
LABELS = COLUMNS | ARTIFACTS | LEAKAGE
LEAKAGE_COLUMNS = ("opening_range", "opening_correlation", *LEAKAGE, "opening_in_silence")
# A/V offsets have a sign per video (late audio: lse_offset < 0, sync_offset_ms > 0); means are of absolute values.
OFFSET_COLUMNS = ("lse_offset", "sync_offset_ms")
CLIP_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "lpips_vgg": 4}  # decimals of the metrics of evaluation.clips


def means_over(videos: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means of LABELS over the videos that have a value.

    Args:
        videos: scores by name of the video, with its 'speaker'.

    Returns:
        Per column 'mean', 'interval' over speakers and number of 'videos'; no entry for a column without values.
    """
    means = {}
    for column in LABELS:
        names = [name for name, scores in videos.items() if scores.get(column) is not None]
        values = np.array([videos[name][column] for name in names])
        values = np.abs(values) if column in OFFSET_COLUMNS else values
        if len(values):
            interval = mean_interval(values, [videos[name]["speaker"] for name in names])
            means[column] = {"mean": float(values.mean()), "interval": interval, "videos": len(values)}
    return means


def markdown_table(report: dict[str, Any], columns: Iterable[str]) -> str:
    """The means of a report of `evaluation.folders` as a Markdown table with these columns of LABELS."""
    heads, cells = ["videos"], [str(len(report["videos"]))]
    for column in columns:
        label, digits, higher = LABELS[column]
        heads.append(label if higher is None else f"{label} {'↑' if higher else '↓'}")
        mean = report["means"].get(column)
        cells.append(with_interval(mean["mean"], mean["interval"], digits) if mean else "missing")
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), cells)) + "\n"


def with_interval(mean: float, interval: tuple[float, float] | None, digits: int) -> str:
    """ "mean [low, high]"."""
    bounds = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return f"{mean:.{digits}f}{bounds}"


def video_tables(report: dict[str, Any], columns: Iterable[str], *, artifacts: bool) -> str:
    """The Markdown tables of a report of `evaluation.folders`: `columns` and, if measured, dubbing artifacts."""
    tables = markdown_table(report, columns)
    if any(column.startswith("ssim") for column in columns):
        tables += f"\n{SSIM_NOTE}\n"
    return f"{tables}\nDubbing artifacts:\n\n{markdown_table(report, ARTIFACTS)}" if artifacts else tables


def video_summary(report: dict[str, Any], columns: Iterable[str]) -> str:
    """What was scored, what failed and why, what is unmatched, and which weights `columns` miss; one line each."""
    frames = ""
    if "frames_per_video" in report:
        per_video = report["frames_per_video"]
        frames = f", up to {per_video} frames each" if per_video else ", every frame"
    speakers = {scores["speaker"] for scores in report["videos"].values()}
    lines = [
        f"{len(report['videos'])} videos of {len(speakers)} speakers scored at {FPS} fps{frames}; "
        f"{len(report['failed'])} failed, {len(report['unmatched'])} unmatched",
        "95 % intervals over speakers" + ("" if len(speakers) > 1 else ": none for one"),
    ]
    if speakers == report["videos"].keys():
        lines.append("each video counts as a speaker of its own: no MANIFEST.tsv beside the real videos names them")
    lines += [f"failed: {name}: {reason}" for name, reason in report["failed"].items()]
    lines += [f"unmatched: {path}" for path in report["unmatched"]]
    download = "python -m scripts.download_weights"
    without = [name for name, scores in report["videos"].items() if scores.get("lse_d") is None]
    if "lse_d" in columns and not is_cached("syncnet_v2"):
        lines.append(f"LSE-D and LSE-C are missing: they need the official SyncNet ({download} syncnet_v2)")
    elif "lse_d" in columns and without:
        reason = "the audio track is missing, damaged or too short, or every shot is"
        lines.append(f"no LSE-D and LSE-C ({reason}): {', '.join(without)}")
    if "fid" in columns and not is_cached("fid_inception"):
        lines.append(f"FID is missing: it needs Inception ({download} fid_inception)")
    return "\n".join(lines)


def create_folder(path: Path) -> None:
    """Create a folder for a report if it is missing. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(path, f"cannot create the folder: {error_reason(error)}") from error


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write a report to evaluation.json in an existing folder. Raises OutputError."""
    content = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    _write(folder / "evaluation.json", content)


def write_video_tables(
    folder: Path, report: dict[str, Any], tables: str, strips: dict[str, np.ndarray] | None = None
) -> None:
    """Write videos.csv (one row per video), table.md (`tables`) and, given strips, worst_and_best.png.

    Raises:
        OutputError: a file cannot be written.
    """
    rows = [{"video": name, **scores} for name, scores in report["videos"].items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _write(folder / "videos.csv", text.getvalue())
    _write(folder / "table.md", tables)
    if strips:
        image = cv2.cvtColor(worst_and_best(report, strips), cv2.COLOR_RGB2BGR)
        content = cv2.imencode(".png", image)[1].tobytes()
        write_atomically(folder / "worst_and_best.png", lambda file: file.write(content))


def _write(path: Path, text: str) -> None:
    content = text.encode(errors="backslashreplace")  # a file name that is not UTF-8
    write_atomically(path, lambda file: file.write(content))


def worst_and_best(report: dict[str, Any], strips: dict[str, np.ndarray], count: int = 3) -> np.ndarray:
    """Labelled strips of the `count` videos with the highest and the lowest LPIPS of the mouth box.

    Args:
        strips: by video name, as from `evaluation.videos.VideoScores.strip`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    order = sorted(strips, key=lambda name: -report["videos"][name]["lpips_mouth"])
    selected = order if len(order) <= 2 * count else [*order[:count], *order[-count:]]
    width = max(strips[name].shape[1] for name in selected)
    rows = []
    for name in selected:
        strip = strips[name]
        header = np.full((40, width, 3), 255, np.uint8)
        label = f"{name}   LPIPS {report['videos'][name]['lpips_mouth']:.4f}   real above, generated below"
        label = label.encode("ascii", "replace").decode()  # OpenCV has no other letters
        cv2.putText(header, label, (8, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2, cv2.LINE_AA)
        rows += [header, np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)))]
    return np.vstack(rows)


def checkpoint_identity(path: Path) -> dict[str, str]:
    """The 'path' and 'sha256' of a checkpoint, for a report."""
    with path.open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def clip_summary(report: dict[str, Any]) -> str:
    """The report of evaluate.py on clips as text: means with intervals, A/V sync if measured, means by speaker.

    Args:
        report: of `evaluation.datasets.evaluate_dataset`, with 'checkpoint' ('path', 'sha256'), 'data' and 'split'.
    """
    size, seconds = report["compared_at"], report["audio_shift_frames"] / FPS
    lines = [
        f"checkpoint {report['checkpoint']['path']} (sha256 {report['checkpoint']['sha256'][:12]}), "
        f"S = {report['mouth_size']}",
        f"{report['data']}, {report['split']}: {report['num_frames']} frames of {report['num_clips']} clips of "
        f"{report['num_speakers']} speakers; mouth box {size} × {size}, 95 % intervals over speakers",
        SSIM_NOTE,
        "",
        f"{'':24}{'PSNR ↑':26}{'SSIM ↑':26}{'LPIPS ↓':26}{'LPIPS (VGG) ↓'}",
    ]
    rows = {"matched": "matched audio", "shifted": f"audio ± {seconds:.2f} s", "difference": "difference"}
    for audio, label in rows.items():
        cells = []
        for name, digits in CLIP_DIGITS.items():
            mean = report[audio][name]
            cells.append(f"{with_interval(mean['mean'], mean['interval'], digits):26}")
        lines.append(f"{label:24}{''.join(cells)}".rstrip())
    if "sync" in report:
        sync = report["sync"]
        lines += ["", f"bundled SyncNet (not LSE), {sync['num_clips']} clips of {SYNC_FRAMES} frames"]
        lines += [
            f"{name:24}score {sync[name]['score']:.3f}   confidence {sync[name]['confidence']:.3f}   "
            f"{sync[name]['within_one_frame']:.0%} in sync to one frame"
            for name in ("real", "generated")
        ]
    width = max(24, *(len(speaker) + 2 for speaker in report["speakers"]))
    lines += [
        "",
        f"{'by speaker':{width}}{'frames':>6}   PSNR    SSIM   LPIPS   the same, audio ± {seconds:.2f} s",
    ]
    for speaker, means in report["speakers"].items():
        cells = [
            f"{means[audio][name]:6.{CLIP_DIGITS[name]}f}"
            for audio in ("matched", "shifted")
            for name in ("psnr", "ssim", "lpips")
        ]
        lines.append(f"{speaker:{width}}{means['frames']:>6}  {'  '.join(cells)}")
    return "\n".join(lines)
