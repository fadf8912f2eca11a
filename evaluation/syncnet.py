"""TODO."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from data_processing.av_sync import encode_windows, offset_and_confidence, shift_scores, window_scores
from data_processing.dataset import Clip
from models.crop_layout import mouth_box, mouth_size_of
from models.syncnet import SyncNet

MAX_SHIFT = 15  # frames to either side in the curve of score against shift
UNDECIDED = 0.25  # the loss of a judge that always says 0.5
PLATEAU_STEPS = 1000  # by now a judge that learns at all has left it


@dataclass(frozen=True)
class SyncEvaluation:
    """How SyncNet judges clips.

    right, wrong: (K,) scores of moments with their own sound, and with one from elsewhere in the clip or from
    another clip, alternating. curve: (2·MAX_SHIFT + 1,) mean score against the shift of the sound. offsets: for
    every clip the shift it scores best at.
    """

    right: np.ndarray
    wrong: np.ndarray
    curve: np.ndarray
    offsets: np.ndarray

    def numbers(self) -> dict[str, float]:
        """Loss and accuracy as in training; the share of moments whose own sound scores above the wrong one; the
        peak of the curve, and the share of clips whose own peak is within one frame of 0."""
        return {
            "loss": float((((self.right - 1) ** 2).mean() + (self.wrong**2).mean()) / 2),
            "accuracy": float(((self.right > 0.5).mean() + (self.wrong < 0.5).mean()) / 2),
            "ranked_right": float((self.right > self.wrong).mean()),
            "curve_peak": int(self.curve.argmax()) - MAX_SHIFT,
            "clips_in_sync": float((np.abs(self.offsets) <= 1).mean()),
        }


@torch.no_grad()
def evaluate_syncnet(syncnet: SyncNet, clips: list[Clip], negative_gap: int, stride: int = 5) -> SyncEvaluation:
    """Score every `stride`-th moment of clips with their own sound, moved sound and other clips' sound."""
    was_training = syncnet.training
    syncnet.eval()
    rng = np.random.default_rng(0)
    rows, columns = mouth_box(mouth_size_of(clips[0].frames.shape[1]))
    far = np.abs(np.arange(-MAX_SHIFT, MAX_SHIFT + 1)) >= negative_gap
    right, wrong, shifted, offsets = [], [], [], []
    for number, clip in enumerate(tqdm(clips, desc="judging", unit="clip", leave=False, disable=None)):
        moments, codes = encode_windows(syncnet, clip.frames[:, rows, columns], stride)
        scores = shift_scores(syncnet, moments, codes, clip.features, MAX_SHIFT)
        other = clips[(number + int(rng.integers(1, max(2, len(clips))))) % len(clips)]
        foreign = window_scores(
            syncnet, codes, other.features, rng.integers(len(other.features), size=len(moments))
        )
        moved = [
            rng.choice(column[~np.isnan(column)]) if not np.isnan(column).all() else np.nan
            for column in scores[far].T
        ]
        right.append(scores[MAX_SHIFT])
        wrong.append(np.where((np.arange(len(moments)) % 2 == 0) | np.isnan(moved), foreign, moved))
        shifted.append(scores)
        offsets.append(offset_and_confidence(scores)[0])
    syncnet.train(was_training)
    curve = np.nanmean(np.concatenate(shifted, axis=1), axis=1)
    return SyncEvaluation(np.concatenate(right), np.concatenate(wrong), curve, np.array(offsets))


def diagnose(log: list[dict[str, Any]], held_out: dict[str, float]) -> str | None:
    """What to look at if SyncNet does not learn, in words; None while all is well.

    Args:
        log: training values of the last PLATEAU_STEPS steps.
        held_out: the newest `Judgement.numbers`.
    """
    loss = float(np.mean([line["loss"] for line in log]))
    accuracy = float(np.mean([line["accuracy"] for line in log]))
    if loss > 0.96 * UNDECIDED:
        return (
            f"plateau: the loss has stood at {loss:.3f} for {PLATEAU_STEPS} steps; {UNDECIDED} is what a judge "
            "gets that cannot tell right from wrong. Look, in this order, at: the offsets of sound and picture in "
            "the data (one frame off is tolerable, five are not), the learning rate (try a third, then three times "
            "as much), the batch size (try 64), shape_warmup_steps (try 500), and whether the clips speak at all."
        )
    if held_out["curve_peak"] != 0 and accuracy > 0.7:
        return (
            f"the score is highest with the sound {held_out['curve_peak']:+d} frames off: the data is out of sync "
            "by that much as a whole. Prepare it again with offsets (data_processing.prepare)."
        )
    if accuracy - held_out["accuracy"] > 0.2:
        return (
            f"accuracy {accuracy:.2f} in training, {held_out['accuracy']:.2f} on held-out people: SyncNet learns "
            "these people by heart. More people help most, then a higher weight_decay and fewer steps."
        )
    return None


def curve_figure(judgement: SyncEvaluation) -> Figure:
    """Mean score against the shift of the sound, and the histogram of right and wrong scores."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.arange(-MAX_SHIFT, MAX_SHIFT + 1), judgement.curve, marker=".")
    left.axvline(0, color="0.8", zorder=0)
    left.set(xlabel="sound moved by … frames", ylabel="mean score", title="held-out people: should peak at 0")
    bins = np.linspace(-0.25, 1.25, 41)
    for scores, name in ((judgement.right, "right sound"), (judgement.wrong, "wrong sound")):
        right.hist(np.clip(scores, bins[0], bins[-1]), bins, alpha=0.6, label=name)
    right.set(xlabel="score", ylabel="moments")
    right.legend()
    return figure
