"""Scoring a generator on the face crops of a prepared dataset, each driven by its own sound ("self-driven" in the
paper's evaluation).

The trainer validates with these functions, on fewer frames and in its own precision.
"""

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
from evaluation.metrics import ImageMetric, bootstrap_interval
from models.checkpoint import LoadedModel
from models.crop_layout import crop_size, mouth_box, mouth_size_of

AUDIO_SHIFT = 12  # frames, 0.48 s: far enough for other sounds, near enough to be the same voice and mood
SYNC_FRAMES = 45  # of a clip, judged together: shorter ones are judged by chance


@dataclass(frozen=True)
class Scores:
    """Measures of the mouth box, one value a sample, and where each sample comes from.

    values: of each measure by its name, (K,) float; people, clip_ids: K names.
    """

    values: dict[str, np.ndarray]
    people: list[str]
    clip_ids: list[str]

    def means(self) -> dict[str, float]:
        """The plain mean of each measure over all samples."""
        return {name: float(found.mean()) for name, found in self.values.items()}


def mouth_boxes(images: torch.Tensor) -> torch.Tensor:
    """The mouth boxes (B, 3, S, S) of face crops (B, 3, 13S/8, 5S/4)."""
    rows, columns = mouth_box(mouth_size_of(images.shape[-2]))
    return images[..., rows, columns]


def validation_samples(clips: list[Clip], per_clip: int, num_references: int, seed: int = 0) -> list[Sample]:
    """Up to `per_clip` frames of each clip, evenly spaced, with random references; unchanged in colour.

    The references of a frame depend on the seed, the clip's number and the frame's index only.
    """
    samples = []
    for number, clip in enumerate(clips):
        num_frames = len(clip.frames)
        for index in evenly_spaced(num_frames, per_clip).tolist():
            rng = np.random.default_rng((seed, number, index))
            references = reference_indices(rng, num_frames, index, num_references)
            samples.append((clip, index, references, 1.0, 0.0, False))
    return samples


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Up to `count` of the numbers below `total`, evenly spaced: (min(count, total),) int."""
    count = min(count, total)
    return ((np.arange(count) + 0.5) * total / count).astype(int)


@torch.no_grad()
def score_clips(
    generator: nn.Module,
    samples: list[Sample],
    measures: dict[str, ImageMetric],
    *,
    mouth_size: int | None = None,
    audio_shift: int = 0,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    precision: torch.dtype | None = None,
) -> Scores:
    """Generate the samples and compare their mouth boxes, rounded to 8 bits, with the real ones.

    Boxes are compared at the size of the samples, whatever the generator's, so that generators of two sizes can be.

    Args:
        generator: as `DINet`, on `device`; run in evaluation mode and given back in the mode it came in.
        measures: by their names; see evaluation.metrics.measures.
        mouth_size: S of the generator, if it is not the samples': they are shrunk to it (by areas) and what is
            drawn is enlarged again (bicubic).
        audio_shift: frames by which the sound is moved against the images, around the clip's end. Scores that
            do not fall for a shift of half a second come from a mouth that does not listen.
        precision: the generator runs under autocast to this type; None for float32.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    was_training = generator.training
    generator.eval()
    try:
        starts = range(0, len(samples), batch_size)
        for start in tqdm(starts, f"sound {audio_shift:+d} frames", unit="batch", leave=False, disable=None):
            chunk = samples[start : start + batch_size]
            batch = make_batch(chunk)
            heard = [((index + audio_shift) % len(clip.frames), clip) for clip, index, *_ in chunk]
            audio = np.concatenate([audio_windows(clip.features, np.array([index])) for index, clip in heard])
            size = crop_size(mouth_size or mouth_size_of(batch.target.shape[-2]))
            masked_source = generator.mask(F.interpolate(batch.target, size, mode="area"))
            inputs = (masked_source, F.interpolate(batch.references, size, mode="area"), torch.from_numpy(audio))
            with torch.autocast(torch.device(device).type, precision, enabled=precision is not None):
                output = generator(*(tensor.to(device) for tensor in inputs))
            target = mouth_boxes(batch.target)
            output = F.interpolate(mouth_boxes(output.float()), target.shape[-2:], mode="bicubic")
            output = (output.clamp(0, 1) * 255).round() / 255
            for name, measure in measures.items():
                values[name].append(measure(output, target))
    finally:
        generator.train(was_training)
    return Scores(
        {name: np.concatenate(parts) for name, parts in values.items()},
        people=[clip.speaker for clip, *_ in samples],
        clip_ids=[clip.id for clip, *_ in samples],
    )


@torch.no_grad()
def sync_check(
    loaded: LoadedModel,
    judge: LoadedModel,
    clips: list[Clip],
    heard: list[np.ndarray],
    device: torch.device,
    precision: torch.dtype | None = None,
) -> dict[str, Any]:
    """How well a SyncNet of ours finds real and generated mouths to fit their sound. These are no LSE.

    The first SYNC_FRAMES frames of every clip that has as many are generated with its own sound; `heard` are the
    features (T, D) of each clip that the judge hears.

    Returns:
        'num_clips', and for 'real' and 'generated' the mean 'score' in step (about 1 is right, 0 wrong), the mean
        'confidence' (see models.syncnet.offset_and_confidence) and the share of clips 'within_one_frame' of step.
    """
    pairs = [pair for pair in zip(clips, heard, strict=True) if len(pair[0].frames) >= SYNC_FRAMES]
    rows, columns = mouth_box(loaded.mouth_size)
    found: dict[str, list[tuple[float, float, bool]]] = {"real": [], "generated": []}
    for number, (clip, features) in enumerate(tqdm(pairs, desc="sync check", unit="clip", disable=None)):
        rng = np.random.default_rng((0, number))
        references = rng.choice(len(clip.frames), loaded.model.config.num_references, replace=False)
        drawn = []
        for start in range(0, SYNC_FRAMES, 15):
            indices = np.arange(start, start + 15)
            batch = make_batch([(clip, indices, references, 1.0, 0.0, False)])
            inputs = (loaded.model.mask(batch.target), batch.references, batch.audio_window)
            with torch.autocast(device.type, precision, enabled=precision is not None):
                output = loaded.model(*(x.to(device) for x in inputs)).float()
            drawn.append((output.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        for name, frames in (("real", clip.frames[:SYNC_FRAMES]), ("generated", np.concatenate(drawn))):
            side = (judge.mouth_size, judge.mouth_size)
            mouths = np.stack([cv2.resize(frame[rows, columns], side, cv2.INTER_AREA) for frame in frames])
            moments, codes = encode_windows(judge.model, mouths)
            scores = shift_scores(judge.model, moments, codes, features, MAX_SHIFT)
            offset, confidence = offset_and_confidence(scores)
            found[name].append((float(scores[MAX_SHIFT].mean()), confidence, abs(offset) <= 1))
    return {
        "num_clips": len(pairs),
        **{
            name: dict(
                zip(("score", "confidence", "within_one_frame"), np.mean(values, axis=0).tolist(), strict=True)
            )
            for name, values in found.items()
        },
    }


def evaluate(
    loaded: LoadedModel,
    clips: list[Clip],
    frames_per_clip: int,
    measures: dict[str, ImageMetric],
    device: torch.device,
    precision: torch.dtype | None = None,
) -> dict[str, Any]:
    """Score a model on clips with matched and with shifted sound; `precision` as in `score`.

    Returns:
        What was measured, ready for JSON. 'matched', 'shifted' (the mean of AUDIO_SHIFT frames later and
        earlier) and 'difference' (matched − shifted) map each metric to its 'mean' and its bootstrap
        'interval' over clips; 'people' maps each person to their number of 'frames', 'matched' and 'shifted'
        means.
    """
    samples = validation_samples(clips, frames_per_clip, loaded.model.config.num_references)
    matched, later, earlier = (
        score_clips(
            loaded.model,
            samples,
            measures,
            mouth_size=loaded.mouth_size,
            audio_shift=shift,
            device=device,
            precision=precision,
        )
        for shift in (0, AUDIO_SHIFT, -AUDIO_SHIFT)
    )
    people, clip_ids = np.array(matched.people), matched.clip_ids
    values: dict[str, dict[str, np.ndarray]] = {"matched": {}, "shifted": {}, "difference": {}}
    for name in measures:
        values["matched"][name] = matched.values[name]
        values["shifted"][name] = (later.values[name] + earlier.values[name]) / 2
        values["difference"][name] = values["matched"][name] - values["shifted"][name]
    return {
        "mouth_size": loaded.mouth_size,
        "compared_at": mouth_size_of(clips[0].frames.shape[1]),
        "num_clips": len(clips),
        "num_people": len(set(matched.people)),
        "num_frames": len(samples),
        "audio_shift_frames": AUDIO_SHIFT,
        **{
            sound: {
                name: {"mean": float(found.mean()), "interval": bootstrap_interval(found, clip_ids)}
                for name, found in metrics.items()
            }
            for sound, metrics in values.items()
        },
        "people": {
            str(person): {
                "frames": int((people == person).sum()),
                **{
                    sound: {name: float(found[people == person].mean()) for name, found in values[sound].items()}
                    for sound in ("matched", "shifted")
                },
            }
            for person in np.unique(people)
        },
    }
