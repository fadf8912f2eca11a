"""Scores of the videos of a folder: a report with the means, and the reason of each failure."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data_processing.sources import find_sources, list_videos
from data_processing.workers import in_workers
from evaluation.metrics import frechet_distance
from evaluation.reports import means_over
from evaluation.videos import (
    MOUTH_SIZE,
    MetricNetworks,
    VideoScores,
    compare_videos,
    official_syncnet,
    video_leakage,
    video_synchrony,
)
from models.syncnet_v2 import SyncNetV2
from utils.errors import FileError, MediaError, UserError

Pair = tuple[str, Path, Path]
Score = TypeVar("Score")


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


def find_pairs(generated: Path, ground_truth: Path) -> tuple[list[Pair], list[str]]:
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
    jobs: int = 1,
    scheduler: str | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score all videos of two folders with `compare_videos`. A video that fails is reported and skipped.

    Args:
        count, own_crops, second_half: of `compare_videos`.
        jobs, scheduler: see `in_workers`.

    Returns:
        A report for JSON and, by name, the strips of the videos (see `VideoScores.strip`). The report has the
        'means' over videos with intervals over speakers, the 'speaker' and the scores of all 'videos', 'failed'
        (name to reason) and 'unmatched' (paths).

    Raises:
        FileError: a folder does not exist.
        MediaError: see `find_pairs`; or no video could be scored.
        ParameterError: there is no scheduler.
    """
    pairs, unmatched = find_pairs(generated, ground_truth)
    speakers = _speakers(pairs)
    compare = partial(_compare, count=count, own_crops=own_crops, second_half=second_half)
    results, failed = _score_each(generated, pairs, compare, jobs, scheduler, partial(MetricNetworks, device))
    videos = _with_speakers(
        speakers,
        {
            name: {"frames": result.num_frames, "unpaired_frames": result.unpaired_frames} | result.scores
            for name, result in results.items()
        },
    )
    strips = {name: result.strip for name, result in results.items()}
    features = [result.features for result in results.values() if result.features is not None]
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


def score_synchrony(
    folder: Path, sources: Path, device: torch.device, jobs: int = 1, scheduler: str | None = None
) -> dict[str, Any]:
    """SYNC_COLUMNS of all videos of a folder, without ground truth: a report like that of `compare_folders`.

    Args:
        sources: folder of the videos of the same names that were dubbed.
        jobs, scheduler: see `in_workers`.

    Raises:
        FileError: a folder does not exist.
        MediaError: see `find_pairs`; or no video could be scored.
        ParameterError: there is no scheduler.
    """
    return _report(folder, sources, _synchrony, jobs, scheduler, partial(official_syncnet, device))


def score_leakage(silent_dubs: Path, sources: Path, jobs: int = 1, scheduler: str | None = None) -> dict[str, Any]:
    """How far the lips of dubs that are driven by silence still move and follow their source's own speech.

    Args:
        jobs, scheduler: see `in_workers`.

    Returns:
        A report like that of `compare_folders` with LEAKAGE_COLUMNS.

    Raises:
        FileError: a folder does not exist.
        MediaError: see `find_pairs`; or no video could be scored.
        ParameterError: there is no scheduler.
    """
    return _report(silent_dubs, sources, video_leakage, jobs, scheduler) | {"ground_truth": str(sources)}


def _report(
    folder: Path,
    sources: Path,
    score: Callable[..., dict[str, float | None]],
    jobs: int,
    scheduler: str | None,
    load: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """The scores of the pairs of two folders, without images."""
    pairs, unmatched = find_pairs(folder, sources)
    speakers = _speakers(pairs)
    scores, failed = _score_each(folder, pairs, score, jobs, scheduler, load)
    videos = _with_speakers(speakers, scores)
    return {
        "generated": str(folder),
        "means": means_over(videos),
        "videos": videos,
        "failed": failed,
        "unmatched": unmatched,
    }


def _score_each(
    folder: Path,
    pairs: list[Pair],
    score: Callable[..., Score],
    jobs: int,
    scheduler: str | None,
    load: Callable[[], Any] | None,
) -> tuple[dict[str, Score], dict[str, str]]:
    """Score pairs of `find_pairs`. One that fails is reported and skipped.

    Args:
        score: called with what `load` returns, if it is given, and the two videos.
        jobs, scheduler, load: see `in_workers`.

    Returns:
        The scores of each pair, and the reason of each failure, by name.

    Raises:
        MediaError: no video of this folder could be scored.
        ParameterError: there is no scheduler.
    """
    if scheduler:
        pairs = [(name, generated.absolute(), source.absolute()) for name, generated, source in pairs]
    work = partial(_try, score)
    done = in_workers(work, pairs, jobs, scheduler, unit="video", description="scoring", load=load)
    outcomes = {name: outcome for name, *outcome in done}
    scores = {name: outcomes[name][0] for name, *_ in pairs if not outcomes[name][1]}
    failed = {name: outcomes[name][1] for name, *_ in pairs if outcomes[name][1]}
    if not scores:
        raise MediaError(folder, f"no video could be scored ({next(iter(failed.values()))})")
    return scores, failed


def _try(score: Callable[..., Score], *loaded_and_pair: Any) -> tuple[str, Score | None, str]:
    """The name of a pair, its scores, and why it failed, "" if it did not."""
    *loaded, (name, generated, source) = loaded_and_pair
    try:
        return name, score(*loaded, generated, source), ""
    except UserError as error:
        return name, None, str(error)
    except Exception as error:  # must not lose the scores of the other videos
        return name, None, f"{type(error).__name__}: {error}"


def _compare(networks: MetricNetworks, generated: Path, ground_truth: Path, **options: Any) -> VideoScores:
    return compare_videos(generated, ground_truth, networks, **options)


def _synchrony(syncnet_v2: SyncNetV2 | None, dub: Path, _: Path) -> dict[str, float | None]:
    return video_synchrony(dub, syncnet_v2)


def _speakers(pairs: list[Pair]) -> dict[str, str]:
    """The speaker of each video, by name: of a MANIFEST.tsv beside the pair's second, else one of its own.

    Raises FileError if a MANIFEST.tsv is not valid.
    """
    sources = find_sources([source for *_, source in pairs], Path(), None)
    speakers = {source.path: source.speaker for source in sources}
    return {name: speakers.get(source, name) for name, _, source in pairs}


def _with_speakers(speakers: dict[str, str], scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores with the 'speaker' of each video."""
    return {name: {"speaker": speaker, **scores[name]} for name, speaker in speakers.items() if name in scores}
