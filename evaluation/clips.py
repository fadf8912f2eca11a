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
        for start in tqdm(starts, f"audio shift {audio_shift:+d}", unit="batch", leave=False, disable=None):
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
def sync_check(
    loaded: LoadedModel,
    syncnet: LoadedModel,
    clips: Sequence[Clip],
    sync_features: list[np.ndarray],
    device: torch.device,
    precision: torch.dtype | None = None,
) -> dict[str, Any]:
    """A/V sync of real and generated mouths with matched audio, scored by a SyncNet of this project (not LSE).

    The first SYNC_FRAMES frames of each clip are generated; shorter clips are skipped.

    Args:
        loaded: the generator.
        syncnet: a SyncNet of models/syncnet.py.
        clips: with the audio features of the generator, at its mouth size.
        sync_features: the audio features (T, D) of each clip that `syncnet` takes.
        precision: as in `score_clips`.

    Returns:
        'num_clips', and under 'real' and 'generated' three means over clips: 'score' of the matched audio (about 1
        in sync, 0 out of sync), 'confidence' (see data_processing.av_sync.offset_and_confidence) and
        'within_one_frame', the fraction of clips whose measured A/V offset is at most one frame.
    """
    pairs = [pair for pair in zip(clips, sync_features, strict=True) if len(pair[0].frames) >= SYNC_FRAMES]
    rows, columns = mouth_box(loaded.mouth_size)
    results: dict[str, list[tuple[float, float, bool]]] = {"real": [], "generated": []}
    for number, (clip, features) in enumerate(tqdm(pairs, desc="sync check", unit="clip", disable=None)):
        rng = np.random.default_rng((0, number))
        references = rng.choice(len(clip.frames), loaded.model.config.num_references, replace=False)
        chunks = []
        for start in range(0, SYNC_FRAMES, 15):
            indices = np.arange(start, start + 15)
            batch = make_batch([(clip, indices, references, 1.0, 0.0, False)])
            inputs = (loaded.model.mask(batch.target), batch.references, batch.audio_window)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                output = loaded.model(*(x.to(device) for x in inputs)).float()
            chunks.append((output.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        for name, frames in (("real", clip.frames[:SYNC_FRAMES]), ("generated", np.concatenate(chunks))):
            size = (syncnet.mouth_size, syncnet.mouth_size)
            mouths = np.stack([cv2.resize(frame[rows, columns], size, cv2.INTER_AREA) for frame in frames])
            centres, codes = encode_windows(syncnet.model, mouths)
            scores = shift_scores(syncnet.model, centres, codes, features, MAX_SHIFT)
            offset, confidence = offset_and_confidence(scores)
            results[name].append((float(scores[MAX_SHIFT].mean()), confidence, abs(offset) <= 1))
    return {
        "num_clips": len(pairs),
        **{
            name: dict(
                zip(("score", "confidence", "within_one_frame"), np.mean(values, axis=0).tolist(), strict=True)
            )
            for name, values in results.items()
        },
    }


def evaluate_generator(
    loaded: LoadedModel,
    clips: Sequence[Clip],
    frames_per_clip: int | None,
    metrics: dict[str, ImageMetric],
    device: torch.device,
    precision: torch.dtype | None = None,
) -> dict[str, Any]:
    """Score a generator with matched and with shifted audio.

    Args:
        clips: with the audio features of the generator; their size is the size of comparison.
        metrics, precision: as in `score_clips`.

    Returns:
        A report for JSON. 'matched', 'shifted' (mean of AUDIO_SHIFT frames later and earlier) and 'difference'
        (matched − shifted) map each metric to its 'mean' and its 'interval' over speakers. 'speakers' maps
        each speaker to the number of 'frames' and the 'matched' and 'shifted' means.
    """
    samples = validation_samples(clips, frames_per_clip, loaded.model.config.num_references)
    matched, later, earlier = (
        score_clips(
            loaded.model,
            samples,
            metrics,
            mouth_size=loaded.mouth_size,
            audio_shift=shift,
            device=device,
            precision=precision,
        )
        for shift in (0, AUDIO_SHIFT, -AUDIO_SHIFT)
    )
    speakers = np.array(matched.speakers)
    scores: dict[str, dict[str, np.ndarray]] = {"matched": {}, "shifted": {}, "difference": {}}
    for name in metrics:
        scores["matched"][name] = matched.values[name]
        scores["shifted"][name] = (later.values[name] + earlier.values[name]) / 2
        scores["difference"][name] = scores["matched"][name] - scores["shifted"][name]
    return {
        "mouth_size": loaded.mouth_size,
        "compared_at": mouth_size_of(clips[0].frames.shape[1]),
        "num_clips": len(clips),
        "num_speakers": len(set(matched.speakers)),
        "num_frames": len(samples),
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
