"""Scores of a generator on a split of a prepared dataset, as evaluate.py reports them, by several workers if asked.

Each worker loads the networks and the list of clips itself, and batches of samples do not depend on the workers, so
any number of them gives the same scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_processing.batches import Sample
from data_processing.dataset import Clip, load_clips, load_features
from data_processing.workers import in_workers
from evaluation.clips import (
    AUDIO_SHIFT,
    SYNC_FRAMES,
    Scores,
    clip_sync,
    score_clips,
    shift_report,
    sync_report,
    validation_samples,
)
from evaluation.metrics import image_metrics
from models.checkpoint import SYNCNET, LoadedModel, load_model
from utils.bundled import BUNDLED_SYNCNET
from utils.errors import ParameterError

BATCH_SIZE = 16  # samples that a worker takes at a time
SHIFTS = (0, AUDIO_SHIFT, -AUDIO_SHIFT)  # of the audio, in frames


@dataclass(frozen=True)
class Evaluation:
    """What is scored.

    checkpoint: the generator.
    data, split: of a prepared dataset.
    size: S of the compared mouth boxes; None for that of the generator.
    frames_per_clip: evenly spaced frames of each clip; None for all.
    precision: type of autocast; None for float32.
    """

    checkpoint: Path
    data: Path
    split: str
    size: int | None
    frames_per_clip: int | None
    device: torch.device
    precision: torch.dtype | None


class _Loaded:
    """An evaluation with the networks and clips that it needs, in one process."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.generator = load_model(evaluation.checkpoint, evaluation.device)
        size, smallest = evaluation.size or self.generator.mouth_size, self.generator.mouth_size
        if size < smallest or size % 32:
            reason = f"expected a multiple of 32, at least the checkpoint's {smallest}, found {size}"
            raise ParameterError("size", reason)
        self.size, self.clips = size, self._load_clips(size)

    def _load_clips(self, size: int) -> Sequence[Clip]:
        return load_clips(self.evaluation.data, self.evaluation.split, size, self.generator.audio_features)

    @cached_property
    def samples(self) -> list[Sample]:
        num_references = self.generator.model.config.num_references
        return validation_samples(self.clips, self.evaluation.frames_per_clip, num_references)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return image_metrics(self.evaluation.device, with_vgg=True)

    @cached_property
    def syncnet(self) -> LoadedModel:
        return load_model(BUNDLED_SYNCNET, self.evaluation.device, kinds=SYNCNET)

    @cached_property
    def sync_inputs(self) -> list[tuple[Clip, np.ndarray]]:
        """Clips of SYNC_FRAMES or more at the size of the generator, and their features for SyncNet."""
        same_size = self.size == self.generator.mouth_size
        clips = self.clips if same_size else self._load_clips(self.generator.mouth_size)
        features = load_features(self.evaluation.data, self.evaluation.split, self.syncnet.audio_features)
        pairs = zip(clips, features, strict=True)
        return [(clip, rows) for clip, rows in pairs if len(clip.frames) >= SYNC_FRAMES]


def evaluate_dataset(
    evaluation: Evaluation, *, with_sync: bool = False, jobs: int = 1, scheduler: str | None = None
) -> dict[str, Any]:
    """Score a generator with matched and with shifted audio.

    Args:
        with_sync: also score the A/V sync with the bundled SyncNet, on clips of SYNC_FRAMES or more.
        jobs, scheduler: see `in_workers`.

    Returns:
        The report of `shift_report`, with 'mouth_size' of the generator, 'compared_at' and 'num_clips', and with
        that of `sync_report` as 'sync'.

    Raises:
        CheckpointError: the generator cannot be loaded.
        DatasetError: the dataset cannot be read; UserError in other processes.
        ParameterError: the size is not valid, no clip is long enough for the A/V sync, or there is no scheduler.
    """
    here = _Loaded(evaluation)
    if with_sync and all(len(clip.frames) < SYNC_FRAMES for clip in here.clips):
        raise ParameterError("sync", f"no clip in {evaluation.data} has {SYNC_FRAMES} frames or more")
    load = _loader(here, in_other_processes=bool(scheduler) or jobs != 1)
    starts = range(0, len(here.samples), BATCH_SIZE)
    options: dict[str, Any] = {"jobs": jobs, "scheduler": scheduler, "load": load}
    parts = dict(in_workers(_score_batch, starts, unit="batch", description="scoring", **options))
    report = {
        "mouth_size": here.generator.mouth_size,
        "compared_at": here.size,
        "num_clips": len(here.clips),
        **shift_report(*(_joined([parts[start][number] for start in starts]) for number in range(len(SHIFTS)))),
    }
    if with_sync:
        numbers = range(len(here.sync_inputs))
        parts = dict(in_workers(_score_sync, numbers, unit="clip", description="sync check", **options))
        report["sync"] = sync_report([parts[number] for number in numbers])
    return report


def _loader(here: _Loaded, *, in_other_processes: bool) -> Callable[[], _Loaded]:
    if not in_other_processes:
        return lambda: here
    paths = {name: getattr(here.evaluation, name).absolute() for name in ("checkpoint", "data")}
    return partial(_Loaded, replace(here.evaluation, **paths))


def _score_batch(loaded: _Loaded, start: int) -> tuple[int, list[Scores]]:
    """`start`, and the scores of the samples from `start` on for each of SHIFTS."""
    evaluation, samples = loaded.evaluation, loaded.samples[start : start + BATCH_SIZE]
    options: dict[str, Any] = {"device": evaluation.device, "precision": evaluation.precision}
    options |= {"mouth_size": loaded.generator.mouth_size, "batch_size": BATCH_SIZE}
    model, metrics = loaded.generator.model, loaded.metrics
    return start, [score_clips(model, samples, metrics, audio_shift=shift, **options) for shift in SHIFTS]


def _score_sync(loaded: _Loaded, number: int) -> tuple[int, dict[str, tuple[float, float, bool]]]:
    clip, features = loaded.sync_inputs[number]
    options = {"device": loaded.evaluation.device, "precision": loaded.evaluation.precision}
    return number, clip_sync(loaded.generator, loaded.syncnet, clip, features, number, **options)


def _joined(parts: list[Scores]) -> Scores:
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    return Scores(values, [speaker for part in parts for speaker in part.speakers])
