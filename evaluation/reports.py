"""TODO."""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from data_processing.media.video_reader import FPS
from evaluation.artifacts import ARTIFACTS
from evaluation.clips import SYNC_FRAMES
from evaluation.metrics import bootstrap_interval

SYNC_COLUMNS = ("lse_d", "lse_c", "lse_offset", "sync_confidence", "sync_late_ms")
# What is measured, and on what; the number of decimals; whether more is better.
COLUMNS = {
    "ssim_face": ("SSIM, face crop", 4, True),
    "psnr_face": ("PSNR, face crop", 2, True),
    "lpips_face": ("LPIPS (AlexNet), face crop", 4, False),
    "lse_d": ("LSE-D", 3, False),
    "lse_c": ("LSE-C", 3, True),
    "lse_offset": ("LSE offset, frames either way", 1, None),
    "ssim_mouth": ("SSIM, mouth box", 4, True),
    "psnr_mouth": ("PSNR, mouth box", 2, True),
    "lpips_mouth": ("LPIPS (AlexNet), mouth box", 4, False),
    "ssim_frame": ("SSIM, full frame", 4, True),
    "psnr_frame": ("PSNR, full frame", 2, True),
    "lpips_vgg_face": ("LPIPS (VGG), face crop", 4, False),
    "lpips_vgg_mouth": ("LPIPS (VGG), mouth box", 4, False),
    "fid": ("FID, face crop", 1, False),
    "lmd": ("LMD, pixels of the face crop", 2, False),
    "csim": ("CSIM (dlib)", 3, True),
    "sync_confidence": ("bundled SyncNet's confidence (not LSE)", 3, True),
    "sync_late_ms": ("bundled SyncNet's offset, ms either way", 0, None),
}
OFFSETS = ("lse_offset", "sync_late_ms")  # signed for each video (late is below 0, above 0), without sign in means


def means_over(videos: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The 'mean', bootstrap 'interval' and number of 'videos' of COLUMNS and LOOKS, over those that have each."""
    means = {}
    for column in (*COLUMNS, *ARTIFACTS):
        names = [name for name, scores in videos.items() if scores.get(column) is not None]
        values = np.array([videos[name][column] for name in names])
        values = np.abs(values) if column in OFFSETS else values
        if len(values):
            interval = bootstrap_interval(values, names)
            means[column] = {"mean": float(values.mean()), "interval": interval, "videos": len(values)}
    return means


def markdown_table(report: dict[str, Any], columns: Iterable[str] = tuple(COLUMNS)) -> str:
    """The means of `compare_folders`, of COLUMNS (in the paper's order, then ours) or LOOKS."""
    heads, cells = ["videos"], [str(len(report["videos"]))]
    for column in columns:
        label, digits, more_is_better = (COLUMNS | ARTIFACTS)[column]
        heads.append(label + {True: " ↑", False: " ↓", None: ""}[more_is_better])
        found = report["means"].get(column)
        cells.append(with_interval(found["mean"], found["interval"], digits) if found else "missing")
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), cells)) + "\n"


def with_interval(mean: float, interval: tuple[float, float] | None, digits: int) -> str:
    """ "mean [low, high]"."""
    ends = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return f"{mean:.{digits}f}{ends}"


def worst_and_best(report: dict[str, Any], strips: dict[str, np.ndarray], count: int = 3) -> np.ndarray:
    """The strips of the videos with the highest and the lowest LPIPS of the mouth, named: (H, W, 3) uint8 RGB."""
    order = sorted(strips, key=lambda name: -report["videos"][name]["lpips_mouth"])
    shown = order if len(order) <= 2 * count else [*order[:count], *order[-count:]]
    width = max(strips[name].shape[1] for name in shown)
    rows = []
    for name in shown:
        strip = strips[name]
        head = np.full((40, width, 3), 255, np.uint8)
        words = f"{name}   LPIPS {report['videos'][name]['lpips_mouth']:.4f}   real above, generated below"
        cv2.putText(head, words, (8, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 0, 0), 2, cv2.LINE_AA)
        rows += [head, np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)))]
    return np.vstack(rows)


def print_clip_report(report: dict[str, Any]) -> None:
    size, seconds = report["compared_at"], report["audio_shift_frames"] / FPS
    print(
        f"checkpoint {report['checkpoint']['path']} (sha256 {report['checkpoint']['sha256'][:12]}), "
        f"S = {report['mouth_size']}"
    )
    print(
        f"{report['data']}, {report['split']}: {report['num_frames']} frames of {report['num_clips']} clips of "
        f"{report['num_people']} people; mouth box {size} × {size}, 95 % intervals over clips\n"
    )
    print(f"{'':24}{'PSNR ↑':26}{'SSIM ↑':26}{'LPIPS ↓':26}{'LPIPS (VGG) ↓'}")
    rows = {"matched": "matched sound", "shifted": f"sound ± {seconds:.2f} s", "difference": "difference"}
    digits = {"psnr": 2, "ssim": 4, "lpips": 4, "lpips_vgg": 4}
    for sound, label in rows.items():
        cells = []
        for name, count in digits.items():
            found = report[sound][name]
            cells.append(f"{with_interval(found['mean'], found['interval'], count):26}")
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
            f"{found[sound][name]:6.{digits[name]}f}"
            for sound in ("matched", "shifted")
            for name in ("psnr", "ssim", "lpips")
        ]
        print(f"{person:{width}}{found['frames']:>6}  {'  '.join(cells)}")
