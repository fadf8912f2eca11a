"""Evaluation of SyncNet on matched and mismatched audio–video pairs, and diagnosis of its training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from data_processing.av_sync import (
    MAX_FRAMES,
    MAX_SHIFT,
    encode_windows,
    offset_and_confidence,
    shift_scores,
    window_scores,
)
from data_processing.dataset import Clip
from models.crop_layout import mouth_box, mouth_size_of
from models.syncnet import SyncNet

CHANCE_LOSS = 0.25  # least-squares loss of a constant score of 0.5
PLATEAU_STEPS = 1000  # a network that learns has left the initial plateau after so many steps


@dataclass(frozen=True)
class SyncEvaluation:
    """SyncNet's scores of the clips of a split.

    Attributes:
        matched: (K,) scores of windows with matched audio.
        mismatched: (K,) scores of the same windows with mismatched audio, alternately from another clip and from
            elsewhere in the same clip.
        curve: (2·MAX_SHIFT + 1,) mean score for each audio shift, −MAX_SHIFT to MAX_SHIFT frames.
        offsets: for each clip the audio shift, in frames, with the highest score.
    """

    matched: np.ndarray
    mismatched: np.ndarray
    curve: np.ndarray
    offsets: np.ndarray

    def summary(self) -> dict[str, float]:
        """Scalars for the log.

        loss, accuracy: as in training.
        ranking_accuracy: fraction of windows whose matched audio scores higher than the mismatched audio.
        curve_peak: audio shift of the highest mean score, in frames.
        clips_in_sync: fraction of clips whose offset is at most one frame.
        """
        return {
            "loss": float((((self.matched - 1) ** 2).mean() + (self.mismatched**2).mean()) / 2),
            "accuracy": float(((self.matched > 0.5).mean() + (self.mismatched < 0.5).mean()) / 2),
            "ranking_accuracy": float((self.matched > self.mismatched).mean()),
            "curve_peak": int(self.curve.argmax()) - MAX_SHIFT,
            "clips_in_sync": float((np.abs(self.offsets) <= 1).mean()),
        }


@torch.no_grad()
def evaluate_syncnet(syncnet: SyncNet, clips: list[Clip], negative_gap: int, stride: int = 5) -> SyncEvaluation:
    """Score every `stride`-th window of each clip with matched, shifted and other clips' audio.

    Args:
        syncnet: is evaluated in evaluation mode and returned to its mode.
        negative_gap: frames; the smallest audio shift that counts as mismatched.
    """
    was_training = syncnet.training
    syncnet.eval()
    rng = np.random.default_rng(0)
    rows, columns = mouth_box(mouth_size_of(clips[0].frames.shape[1]))
    is_negative = np.abs(np.arange(-MAX_SHIFT, MAX_SHIFT + 1)) >= negative_gap
    matched, mismatched, shifted, offsets = [], [], [], []
    for number, clip in enumerate(tqdm(clips, desc="evaluating SyncNet", unit="clip", leave=False, disable=None)):
        middles, codes = encode_windows(syncnet, clip.frames[:MAX_FRAMES, rows, columns], stride)
        scores = shift_scores(syncnet, middles, codes, clip.features, MAX_SHIFT)
        other = clips[(number + int(rng.integers(1, max(2, len(clips))))) % len(clips)]
        other_clip = window_scores(
            syncnet, codes, other.features, rng.integers(len(other.features), size=len(middles))
        )
        same_clip = [
            rng.choice(column[~np.isnan(column)]) if not np.isnan(column).all() else np.nan
            for column in scores[is_negative].T
        ]
        matched.append(scores[MAX_SHIFT])
        mismatched.append(np.where((np.arange(len(middles)) % 2 == 0) | np.isnan(same_clip), other_clip, same_clip))
        shifted.append(scores)
        offsets.append(offset_and_confidence(scores)[0])
    syncnet.train(was_training)
    curve = np.nanmean(np.concatenate(shifted, axis=1), axis=1)
    return SyncEvaluation(np.concatenate(matched), np.concatenate(mismatched), curve, np.array(offsets))


def diagnose(log: list[dict[str, Any]], held_out: dict[str, float]) -> str | None:
    """Advice if SyncNet does not learn or overfits; None otherwise.

    Args:
        log: values of the last PLATEAU_STEPS training steps.
        held_out: the latest `SyncEvaluation.summary`.
    """
    loss = float(np.mean([line["loss"] for line in log]))
    accuracy = float(np.mean([line["accuracy"] for line in log]))
    if loss > 0.96 * CHANCE_LOSS:
        return (
            f"plateau: the mean loss of the last {PLATEAU_STEPS} steps is {loss:.3f}, and {CHANCE_LOSS} is chance "
            "level. Check in this order: the A/V offsets of the dataset (1 frame is tolerable, 5 are not); the "
            "learning rate (try a third, then three times as much); batch_size (try 64); shape_warmup_steps (try "
            "500); whether the clips contain speech."
        )
    if held_out["curve_peak"] != 0 and accuracy > 0.7:
        return (
            f"the score peaks at an audio shift of {held_out['curve_peak']:+d} frames: the whole dataset has this "
            "A/V offset. Prepare it again with corrected offsets (data_processing.prepare)."
        )
    if accuracy - held_out["accuracy"] > 0.2:
        return (
            f"overfitting: accuracy {accuracy:.2f} in training, {held_out['accuracy']:.2f} on held-out speakers. "
            "Add speakers, or else raise weight_decay and lower max_steps."
        )
    return None


def curve_figure(evaluation: SyncEvaluation) -> Figure:
    """Mean score against audio shift, and histograms of the scores of matched and mismatched audio."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.arange(-MAX_SHIFT, MAX_SHIFT + 1), evaluation.curve, marker=".")
    left.axvline(0, color="0.8", zorder=0)
    left.set(xlabel="audio shift (frames)", ylabel="mean score", title="held-out speakers (in sync: peak at 0)")
    bins = np.linspace(-0.25, 1.25, 41)
    for scores, label in ((evaluation.matched, "matched audio"), (evaluation.mismatched, "mismatched audio")):
        right.hist(np.clip(scores, bins[0], bins[-1]), bins, alpha=0.6, label=label)
    right.set(xlabel="score", ylabel="windows")
    right.legend()
    return figure
