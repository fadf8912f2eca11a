"""Scores of a generator on the face crops of a prepared dataset, each driven by its matched audio ("self-driven" in
the paper's evaluation).

Validation during training uses these functions too, on fewer frames and in the precision of the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data_processing.audio.framing import audio_windows
from data_processing.av_sync import MAX_SHIFT, encode_windows, offset_and_confidence, shift_scores
from data_processing.batches import Sample, make_batch, reference_indices
from data_processing.dataset import Clip
from evaluation.metrics import ImageMetric, mean_interval
from models.checkpoint import LoadedModel
from models.crop_layout import crop_size, mouth_box, mouth_size_of

AUDIO_SHIFT = 12  # frames, 0.48 s: long enough for different phonemes, short enough for the same prosody
SYNC_FRAMES = 45  # frames of a clip that SyncNet scores together; on shorter clips its confidence is mostly noise


@dataclass(frozen=True)
class Scores:
    """Image metrics of the mouth box for K samples.

    values: metric name to (K,) float.
    speakers: the speaker of each sample, K names.
    """

    values: dict[str, np.ndarray]
    speakers: list[str]

    def means(self) -> dict[str, float]:
        """The mean of each metric over all samples."""
        return {name: float(values.mean()) for name, values in self.values.items()}


def mouth_boxes(images: torch.Tensor) -> torch.Tensor:
    """Mouth boxes (B, 3, S, S) of face crops (B, 3, 13S/8, 5S/4)."""
    rows, columns = mouth_box(mouth_size_of(images.shape[-2]))
    return images[..., rows, columns]


def validation_samples(
    clips: Sequence[Clip], per_clip: int | None, num_references: int, seed: int = 0
) -> list[Sample]:
    """Up to `per_clip` evenly spaced frames of each clip with random reference frames, without augmentation.

    All frames if `per_clip` is None. The reference frames depend only on the seed, the position of the clip in
    `clips` and the index of the frame.
    """
    samples = []
    for number, clip in enumerate(clips):
        num_frames = len(clip.frames)
        for index in evenly_spaced(num_frames, per_clip).tolist():
            rng = np.random.default_rng((seed, number, index))
            references = reference_indices(rng, num_frames, index, num_references)
            samples.append((clip, index, references, 1.0, 0.0, False))
    return samples


def evenly_spaced(total: int, count: int | None) -> np.ndarray:
    """`count` evenly spaced indices below `total`; all of them if there are fewer or `count` is None: (K,) int."""
    count = total if count is None else min(count, total)
    return ((np.arange(count) + 0.5) * total / count).astype(int)


@torch.no_grad()
def score_clips(
    generator: nn.Module,
    samples: list[Sample],
    metrics: dict[str, ImageMetric],
    *,
    mouth_size: int | None = None,
    audio_shift: int = 0,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    precision: torch.dtype | None = None,
) -> Scores:
    """Generate the target frames of the samples and compare their mouth boxes with the ground truth.

    Outputs are rounded to 8 bits. Mouth boxes are compared at the size of the samples, whatever the size of the
    generator, so that generators of different sizes can be compared.

    Args:
        generator: like `DINet`, on `device`. It runs in evaluation mode; its mode is restored afterwards.
        samples: see `validation_samples`.
        metrics: by name; see `evaluation.metrics.image_metrics`.
        mouth_size: S of the generator if it is not that of the samples. Inputs are then downsampled to it (by area)
            and outputs upsampled again (bicubic).
        audio_shift: number of frames by which the audio is shifted against the images, cyclically within the clip.
            If a shift of half a second does not lower the scores, the generator ignores the audio.
        batch_size: samples per forward pass.
        precision: type of autocast for the generator; None for float32.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    was_training = generator.training
    generator.eval()
    try:
        starts = range(0, len(samples), batch_size)
        no_bar = True if len(starts) == 1 else None  # None: only on a terminal
        for start in tqdm(starts, f"audio shift {audio_shift:+d}", unit="batch", leave=False, disable=no_bar):
            chunk = samples[start : start + batch_size]
            batch = make_batch(chunk)
            centres = [((index + audio_shift) % len(clip.frames), clip) for clip, index, *_ in chunk]
            audio = np.concatenate([audio_windows(clip.features, np.array([index])) for index, clip in centres])
            size = crop_size(mouth_size or mouth_size_of(batch.target.shape[-2]))
            masked_source = generator.mask(F.interpolate(batch.target, size, mode="area"))
            inputs = (masked_source, F.interpolate(batch.references, size, mode="area"), torch.from_numpy(audio))
            with torch.autocast(torch.device(device).type, precision, enabled=precision is not None):
                output = generator(*(tensor.to(device) for tensor in inputs))
            target = mouth_boxes(batch.target)
            output = F.interpolate(mouth_boxes(output.float()), target.shape[-2:], mode="bicubic")
            output = (output.clamp(0, 1) * 255).round() / 255
            for name, metric in metrics.items():
                values[name].append(metric(output, target))
    finally:
        generator.train(was_training)
    return Scores(
        {name: np.concatenate(parts) for name, parts in values.items()},
        speakers=[clip.speaker for clip, *_ in samples],
    )


@torch.no_grad()
def clip_sync(
    loaded: LoadedModel,
    syncnet: LoadedModel,
    clip: Clip,
    sync_features: np.ndarray,
    number: int,
    device: torch.device,
    precision: torch.dtype | None = None,
) -> dict[str, tuple[float, float, bool]]:
    """A/V sync of real and generated mouths with matched audio, scored by a SyncNet of this project (not LSE).

    Args:
        loaded: the generator, which generates the first SYNC_FRAMES frames.
        syncnet: a SyncNet of models/syncnet.py.
        clip: with the audio features of the generator, at its mouth size.
        sync_features: the audio features (T, D) of the clip that `syncnet` takes.
        number: of the clip; the random reference frames depend on it.
        precision: as in `score_clips`.

    Returns:
        Under 'real' and 'generated': the score of the matched audio (about 1 in sync, 0 out of sync), the
        confidence (see data_processing.av_sync.offset_and_confidence) and whether the measured A/V offset is at
        most one frame.
    """
    rows, columns = mouth_box(loaded.mouth_size)
    rng = np.random.default_rng((0, number))
    chunks = []
    for start in range(0, SYNC_FRAMES, 15):
        indices = np.arange(start, start + 15)
        references = reference_indices(rng, len(clip.frames), indices, loaded.model.config.num_references)
        batch = make_batch([(clip, indices, references, 1.0, 0.0, False)])
        inputs = (loaded.model.mask(batch.target), batch.references, batch.audio_window)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            output = loaded.model(*(x.to(device) for x in inputs)).float()
        chunks.append((output.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    results = {}
    for name, frames in (("real", clip.frames[:SYNC_FRAMES]), ("generated", np.concatenate(chunks))):
        size = (syncnet.mouth_size, syncnet.mouth_size)
        mouths = np.stack(
            [cv2.resize(frame[rows, columns], size, interpolation=cv2.INTER_AREA) for frame in frames]
        )
        centres, codes = encode_windows(syncnet.model, mouths)
        scores = shift_scores(syncnet.model, centres, codes, sync_features, MAX_SHIFT)
        offset, confidence = offset_and_confidence(scores)
        results[name] = (float(scores[MAX_SHIFT].mean()), confidence, abs(offset) <= 1)
    return results


def sync_report(results: list[dict[str, tuple[float, float, bool]]]) -> dict[str, Any]:
    """Of the results of `clip_sync`: 'num_clips', and under 'real' and 'generated' three means over clips.

    They are 'score', 'confidence' and 'within_one_frame', the fraction of clips with an A/V offset of at most one
    frame.
    """
    names = ("score", "confidence", "within_one_frame")
    report: dict[str, Any] = {"num_clips": len(results)}
    for kind in ("real", "generated"):
        means = np.mean([result[kind] for result in results], axis=0).tolist()
        report[kind] = dict(zip(names, means, strict=True))
    return report


def shift_report(matched: Scores, later: Scores, earlier: Scores) -> dict[str, Any]:
    """Scores of the same samples with matched audio and with audio shifted by AUDIO_SHIFT frames, for JSON.

    Returns:
        'matched', 'shifted' (mean of later and earlier) and 'difference' (matched − shifted) map each metric to its
        'mean' and its 'interval' over speakers. 'speakers' maps each speaker to the number of 'frames' and the
        'matched' and 'shifted' means.
    """
    speakers = np.array(matched.speakers)
    scores: dict[str, dict[str, np.ndarray]] = {"matched": {}, "shifted": {}, "difference": {}}
    for name in matched.values:
        scores["matched"][name] = matched.values[name]
        scores["shifted"][name] = (later.values[name] + earlier.values[name]) / 2
        scores["difference"][name] = scores["matched"][name] - scores["shifted"][name]
    return {
        "num_speakers": len(set(matched.speakers)),
        "num_frames": len(matched.speakers),
        "audio_shift_frames": AUDIO_SHIFT,
        "intervals_over": "speakers",
        **{
            audio: {
                name: {"mean": float(values.mean()), "interval": mean_interval(values, matched.speakers)}
                for name, values in by_metric.items()
            }
            for audio, by_metric in scores.items()
        },
        "speakers": {
            str(speaker): {
                "frames": int((speakers == speaker).sum()),
                **{
                    audio: {
                        name: float(values[speakers == speaker].mean()) for name, values in scores[audio].items()
                    }
                    for audio in ("matched", "shifted")
                },
            }
            for speaker in np.unique(speakers)
        },
    }
