"""Scores of the videos of a folder: a report with the means, and the reason of each failure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_processing.sources import find_sources, list_videos
from evaluation.metrics import frechet_distance
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
    count: int | None,
    device: torch.device,
    *,
    own_crops: bool = False,
    second_half: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score all videos of two folders with `compare_videos`. A video that fails is reported and skipped.

    Returns:
        A report for JSON and, by name, the strips of the videos (see `VideoScores.strip`). The report has the
        'means' over videos with intervals over speakers, the 'speaker' and the scores of all 'videos', 'failed'
        (name to reason) and 'unmatched' (paths).

    Raises:
        FileError: a folder does not exist.
        MediaError: see `find_pairs`; or no video could be scored.
    """
    pairs, unmatched = find_pairs(generated, ground_truth)
    networks = MetricNetworks(device)
    strips: dict[str, np.ndarray] = {}
    features: list[np.ndarray] = []

    def score(output: Path, target: Path) -> dict[str, float | None]:
        result = compare_videos(output, target, networks, count, own_crops=own_crops, second_half=second_half)
        strips[output.stem] = result.strip
        features.extend([] if result.features is None else [result.features])
        return {"frames": result.num_frames, "unpaired_frames": result.unpaired_frames} | result.scores

    videos, failed = _score_each(generated, pairs, score)
    means = means_over(videos)
    if features and (distance := frechet_distance(*np.concatenate(features, axis=1))) is not None:
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


def score_synchrony(folder: Path, sources: Path, device: torch.device) -> dict[str, Any]:
    """SYNC_COLUMNS of all videos of a folder, without ground truth: a report like that of `compare_folders`.

    Args:
        sources: folder of the videos of the same names that were dubbed.

    Raises:
        FileError: a folder does not exist.
        MediaError: see `find_pairs`; or no video could be scored.
    """
    syncnet_v2 = official_syncnet(device)

    def score(dub: Path, source: Path) -> dict[str, float | None]:
        return video_synchrony(dub, syncnet_v2)

    pairs, unmatched = find_pairs(folder, sources)
    videos, failed = _score_each(folder, pairs, score)
    return {
        "generated": str(folder),
        "means": means_over(videos),
        "videos": videos,
        "failed": failed,
        "unmatched": unmatched,
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
    folder: Path, pairs: list[tuple[str, Path, Path]], score: Callable[[Path, Path], dict[str, float | None]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Score pairs of `find_pairs`. One that fails is reported and skipped.

    Returns:
        The 'speaker' and the scores of each pair, and the reason of each failure, by name. Speakers are those of a
        MANIFEST.tsv beside the second videos, else each is one of its own.

    Raises:
        MediaError: no video of this folder could be scored.
        FileError: a MANIFEST.tsv is not valid.
    """
    sources = find_sources([source for *_, source in pairs], folder, None)
    speakers = {source.path: source.speaker for source in sources}
    scores, failed = {}, {}
    for name, generated, source in tqdm(pairs, unit="video", disable=None):
        try:
            scores[name] = {"speaker": speakers.get(source, name), **score(generated, source)}
        except UserError as error:
            failed[name] = str(error)
    if not scores:
        raise MediaError(folder, f"no video could be scored ({next(iter(failed.values()))})")
    return scores, failed
