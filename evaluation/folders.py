"""Scores of the videos of a folder: a report with the means, and the reason of each failure."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_processing.sources import list_videos
from evaluation.reports import means_over
from evaluation.videos import (
    MOUTH_SIZE,
    MetricNetworks,
    compare_videos,
    official_syncnet,
    video_leakage,
    video_synchrony,
)
from utils.errors import FileError, MediaError, UserError


def find_videos(folder: Path) -> dict[str, Path]:
    """The videos of a folder by name without suffix, sorted; see `list_videos`.

    Raises:
        FileError: the folder does not exist.
        MediaError: it contains no video, or two of the same name.
    """
    if not folder.is_dir():
        raise FileError(folder, "not a folder" if folder.exists() else "no such folder")
    paths = list_videos(folder)
    videos = {path.stem: path for path in paths}
    if not videos:
        raise MediaError(folder, "no videos in this folder")
    if len(videos) < len(paths):
        duplicate = next(path for path in paths if path not in videos.values())
        raise MediaError(folder, f"two videos are named {duplicate.stem}; rename or remove one")
    return videos


def find_pairs(generated: Path, ground_truth: Path) -> tuple[list[tuple[str, Path, Path]], list[str]]:
    """Pair the videos of two folders by name without suffix.

    Returns:
        (name, generated, ground truth) of each pair, and the paths of the unmatched videos; both sorted.

    Raises:
        FileError: a folder does not exist.
        MediaError: a folder contains no video or two of the same name, or no names match.
    """
    first, second = find_videos(generated), find_videos(ground_truth)
    if not first.keys() & second.keys():
        names = ", ".join(list(first)[:3])
        raise MediaError(generated, f"no video has the name of a video in {ground_truth} (names here: {names})")
    pairs = [(name, first[name], second[name]) for name in sorted(first.keys() & second.keys())]
    unmatched = [(first | second)[name] for name in first.keys() ^ second.keys()]
    return pairs, sorted(map(str, unmatched))


def compare_folders(
    generated: Path,
    ground_truth: Path,
    count: int,
    device: torch.device,
    *,
    own_crops: bool = False,
    second_half: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score all videos of two folders with `compare_videos`. A video that fails is reported and skipped.

    Returns:
        A report for JSON and, by name, the strips of the videos (see `VideoScores.strip`). The report has the
        'means' over videos with bootstrap intervals, the scores of all 'videos', 'failed' (name to reason) and
        'unmatched' (paths).

    Raises:
        FileError: a folder does not exist.
        MediaError: see `find_pairs`; or no video could be scored.
    """
    pairs, unmatched = find_pairs(generated, ground_truth)
    networks = MetricNetworks(device)
    strips = {}

    def score(output: Path, target: Path) -> dict[str, float | None]:
        result = compare_videos(output, target, networks, count, own_crops=own_crops, second_half=second_half)
        strips[output.stem] = result.strip()
        if networks.fid:
            networks.fid.add(*(torch.from_numpy(result.faces).permute(0, 1, 4, 2, 3) / 255))
        frames = {"frames": result.faces.shape[1], "unpaired_frames": result.unpaired_frames}
        return frames | result.scores

    videos, failed = _score_each(generated, pairs, score)
    means = means_over(videos)
    if networks.fid and (distance := networks.fid.value()) is not None:
        means["fid"] = {"mean": distance, "interval": None, "videos": len(videos)}
    report = {
        "generated": str(generated),
        "ground_truth": str(ground_truth),
        "mouth_size": MOUTH_SIZE,
        "frames_per_video": count,
        "cropped_by": "own landmarks" if own_crops else "ground-truth landmarks",
        "means": means,
        "videos": videos,
        "failed": failed,
        "unmatched": unmatched,
    }
    return report, strips


def score_synchrony(folder: Path, device: torch.device) -> dict[str, Any]:
    """SYNC_COLUMNS of all videos of a folder, without ground truth: a report like that of `compare_folders`.

    Raises:
        FileError: the folder does not exist.
        MediaError: see `find_videos`; or no video could be scored.
    """
    syncnet_v2 = official_syncnet(device)

    def score(path: Path) -> dict[str, float | None]:
        return video_synchrony(path, syncnet_v2)

    videos, failed = _score_each(folder, find_videos(folder).items(), score)
    return {
        "generated": str(folder),
        "means": means_over(videos),
        "videos": videos,
        "failed": failed,
        "unmatched": [],
    }


def score_leakage(silent_dubs: Path, sources: Path) -> dict[str, Any]:
    """How far the lips of dubs that are driven by silence still move and follow their source's own speech.

    Returns:
        A report like that of `compare_folders` with LEAKAGE_COLUMNS.

    Raises:
        FileError: a folder does not exist.
        MediaError: see `find_pairs`; or no video could be scored.
    """
    pairs, unmatched = find_pairs(silent_dubs, sources)
    videos, failed = _score_each(silent_dubs, pairs, video_leakage)
    return {
        "generated": str(silent_dubs),
        "ground_truth": str(sources),
        "means": means_over(videos),
        "videos": videos,
        "failed": failed,
        "unmatched": unmatched,
    }


def _score_each(
    folder: Path, videos: Iterable[tuple[Any, ...]], score: Callable[..., dict[str, float | None]]
) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """Score videos, given as name and arguments of `score`. One that fails is reported and skipped.

    Returns:
        The scores of each video, and the reason of each failure, by name.

    Raises:
        MediaError: no video of this folder could be scored.
    """
    scores, failed = {}, {}
    for name, *paths in tqdm(list(videos), unit="video", disable=None):
        try:
            scores[name] = score(*paths)
        except UserError as error:
            failed[name] = str(error)
    if not scores:
        raise MediaError(folder, f"no video could be scored ({next(iter(failed.values()))})")
    return scores, failed
