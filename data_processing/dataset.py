"""Prepared dataset -> training samples.

All clips are held decoded as uint8 in memory at the size of the training (45 minutes at S = 64: 1.7 GB). A batch
is a pure function of (seed, step), so a resumed run sees exactly what an unbroken one would have.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count, sysconf
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from tqdm import tqdm

from data_processing.audio_features import windows
from data_processing.errors import UserError
from data_processing.geometry import crop_size, mouth_box, mouth_size_of
from data_processing.prepare import read_jsonl
from data_processing.video import read_frames

REFERENCE_GAP = 5  # frames: references nearer to the drawn frame than this would show the answer


@dataclass(frozen=True)
class Clip:
    """One clip in memory: frames (T, 13S/8, 5S/4, 3) uint8 RGB, features (T, D), landmarks (T, 68, 2) float32."""

    id: str
    person: str
    frames: np.ndarray
    features: np.ndarray
    landmarks: np.ndarray


class Batch(NamedTuple):
    """Training samples; images are RGB in [0, 1].

    masked_source, target: (B, 3, H, W); references: (B, 3N, H, W); audio_window: (B, D, 5).
    clip_ids: B names, for messages.
    """

    masked_source: torch.Tensor
    references: torch.Tensor
    audio_window: torch.Tensor
    target: torch.Tensor
    clip_ids: list[str]


def load_clips(data: Path, split: str, mouth_size: int, audio_features: str) -> list[Clip]:
    """Decode one split ('train' or 'val') of a prepared dataset into memory.

    Raises:
        UserError: not a prepared dataset, other features than asked for, an empty split, or a clip that cannot
            be read (named).
    """
    manifest = data / "manifest.jsonl"
    if not manifest.is_file():
        raise UserError(
            f"--data: expected a prepared dataset, found no {manifest.name} in {data}; see data_processing.prepare"
        )
    lines = [line for line in read_jsonl(manifest) if line["split"] == split]
    if not lines:
        raise UserError(
            f"--data: {data} has no clip in its {split} split; prepare more people or raise --val-percent"
        )
    other = {line["audio_features"] for line in lines} - {audio_features}
    if other:
        raise UserError(
            f"--data: {data} holds {', '.join(other)} features, the configuration asks for {audio_features}"
        )
    height, width = crop_size(mouth_size)
    needed = sum(line["num_frames"] for line in lines) * height * width * 3
    available = sysconf("SC_AVPHYS_PAGES") * sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise UserError(
            f"--data: the {split} split takes {needed / 1e9:.1f} GB of memory at S = {mouth_size}, "
            f"{available / 1e9:.1f} GB are free; choose fewer clips or a smaller mouth_size"
        )
    with ThreadPoolExecutor(cpu_count()) as pool:  # decoding leaves Python's lock
        loaded = pool.map(lambda line: _load_clip(data, line, mouth_size), lines)
        return list(tqdm(loaded, total=len(lines), unit="clip", desc=f"loading {split}"))


def _load_clip(data: Path, line: dict, mouth_size: int) -> Clip:
    height, width = crop_size(mouth_size)
    path = data / "clips" / f"{line['id']}.mp4"
    frames = np.empty((line["num_frames"], height, width, 3), np.uint8)
    count = 0
    for count, frame in enumerate(read_frames(path, flag="--data"), 1):
        if count > len(frames):
            break
        shrink = cv2.INTER_AREA if frame.shape[0] > height else cv2.INTER_CUBIC
        frames[count - 1] = cv2.resize(frame, (width, height), interpolation=shrink)
    if count != len(frames):
        raise UserError(f"--data: clip {line['id']}: expected {len(frames)} frames, found {count}")
    try:
        with np.load(data / "clips" / f"{line['id']}.npz", allow_pickle=False) as arrays:
            features = arrays["features"].astype(np.float32)
            landmarks = arrays["landmarks"].astype(np.float32)
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise UserError(f"--data: clip {line['id']}: its .npz cannot be read ({error})") from None
    for name, rows in (("features", features), ("landmarks", landmarks)):
        if len(rows) != len(frames):
            raise UserError(f"--data: clip {line['id']}: {len(frames)} frames but {len(rows)} rows of {name}")
    return Clip(line["id"], line["person"], frames, features, landmarks)


def reference_indices(rng: np.random.Generator, num_frames: int, index: int, count: int) -> np.ndarray:
    """`count` random frames of a clip, at least REFERENCE_GAP from frame `index` where the clip is long enough."""
    candidates = np.arange(num_frames)
    apart = candidates[np.abs(candidates - index) >= REFERENCE_GAP]
    candidates = apart if len(apart) >= count else candidates
    return rng.choice(candidates, count, replace=len(candidates) < count)


class TrainingBatches(torch.utils.data.Dataset):
    """Item k is the batch of training step k: random frames with random references from their clips.

    A person with n frames is drawn with probability ∝ n ** person_power: 1 draws evenly over all frames, more leans
    to the long recordings of few people, from which the sound is learned sooner, less to the many faces.

    Half of the samples are mirrored, and all have their brightness and contrast changed a little: people and
    lights to come differ more than those at hand.
    """

    def __init__(
        self,
        clips: list[Clip],
        batch_size: int,
        num_references: int,
        num_steps: int,
        seed: int,
        person_power: float = 1.0,
    ) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.num_references = num_references
        self.num_steps = num_steps
        self.seed = seed
        frames_of = Counter()
        for clip in clips:
            frames_of[clip.person] += len(clip.frames)
        weights = np.array([len(clip.frames) * frames_of[clip.person] ** (person_power - 1) for clip in clips])
        self.probabilities = weights / weights.sum()

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        samples = []
        for number in rng.choice(len(self.clips), self.batch_size, p=self.probabilities):
            clip = self.clips[number]
            index = int(rng.integers(len(clip.frames)))
            references = reference_indices(rng, len(clip.frames), index, self.num_references)
            gain, bias, mirror = rng.uniform(0.85, 1.15), rng.uniform(-0.06, 0.06), rng.random() < 0.5
            samples.append((clip, index, references, gain, bias, mirror))
        return make_batch(samples)


def make_batch(samples: list[tuple[Clip, int, np.ndarray, float, float, bool]]) -> Batch:
    """Stack (clip, frame index, reference indices, gain, bias, mirrored) into a batch."""
    targets, references, audio = [], [], []
    for clip, index, reference, gain, bias, mirror in samples:
        images = clip.frames[[index, *reference]].astype(np.float32) / 255
        images = np.clip(images * gain + bias, 0, 1)
        images = images[:, :, ::-1] if mirror else images
        images = images.transpose(0, 3, 1, 2)
        targets.append(images[0])
        references.append(images[1:].reshape(-1, *images.shape[2:]))
        audio.append(windows(clip.features, np.array([index]))[0])
    target = torch.from_numpy(np.stack(targets))
    return Batch(
        mask_mouth(target),
        torch.from_numpy(np.stack(references)),
        torch.from_numpy(np.stack(audio)),
        target,
        [sample[0].id for sample in samples],
    )


def mask_mouth(images: torch.Tensor) -> torch.Tensor:
    """A copy of face crops (..., 3, H, W) with the mouth box set to 0."""
    rows, columns = mouth_box(mouth_size_of(images.shape[-2]))
    masked = images.clone()
    masked[..., rows, columns] = 0
    return masked
