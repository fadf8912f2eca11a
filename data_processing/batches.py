"""Sample training batches from the clips of a prepared dataset.

A batch is a pure function of (seed, step), so a resumed run sees the batches that an uninterrupted run would have
seen. With several processes each one loads only its shard of every batch.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from data_processing.audio.framing import WINDOW_RADIUS, audio_windows
from data_processing.dataset import Clip
from models.crop_layout import mouth_box, mouth_size_of
from models.syncnet import CLIP_LENGTH, SYNC_WINDOW
from utils.errors import ParameterError

SYNC_RADIUS = SYNC_WINDOW // 2  # rows of audio features on either side of the middle of SyncNet's five frames
SYNC_HALF = CLIP_LENGTH // 2  # frames on either side of the middle of SyncNet's five frames
REFERENCE_GAP = 5  # frames; a reference nearer to the target frame would show the target's mouth

logger = logging.getLogger(__name__)

# One sample: clip, index or indices of its T target frames, indices of its reference frames (N,) or (T, N), gain,
# bias, mirrored.
Sample = tuple[Clip, int | np.ndarray, np.ndarray, float, float, bool]


class Batch(NamedTuple):
    """B samples of T consecutive frames with N reference frames; T = 1 in the frame stage.

    Images are uint8, or float32 in [0, 1], RGB.

    target: (B·T, 3, H, W), the frames of a sample one after another.
    references: (B, 3N, H, W), or (B·T, 3N, H, W) if each target frame has its own.
    audio_window: (B·T, D, 5), the audio window of each frame.
    sync_audio: (B, D, T + 4), the rows of audio features that the windows of a sample cover.
    clip_ids: names of the clips of the whole batch, all shards, for messages.
    """

    target: torch.Tensor
    references: torch.Tensor
    audio_window: torch.Tensor
    sync_audio: torch.Tensor
    clip_ids: list[str]


class SyncBatch(NamedTuple):
    """B mouth windows of five frames, each with matched audio and K negatives (mismatched audio).

    mouths: (B, 15, S, S), uint8 RGB, five frames stacked in the channels.
    audio: (B, 1 + K, D, 9), the matched audio first.
    clip_ids: names of the clips of the whole batch, all shards, for messages.
    """

    mouths: torch.Tensor
    audio: torch.Tensor
    clip_ids: list[str]


class TrainingBatches(torch.utils.data.Dataset):
    """Item k is the `Batch` of training step k: random frames with random reference frames of the same clip.

    speaker_sampling_exponent: a speaker with n frames is sampled with probability ∝ n ** exponent. With 1 all
        frames are equally probable. A higher exponent favours long recordings of few speakers, from which the
        mapping from audio to lips is learned sooner. A lower one favours many different faces.
    clip_length: T, consecutive target frames per sample. Shorter clips are not sampled.
    references_per_frame: whether each target frame of a sample has its own reference frames.
    augment: whether brightness and contrast of every sample are changed slightly, and half of the samples mirrored:
        new speakers and lighting differ more than those of the dataset.
    crop_scale_jitter: the targets and each reference frame show up to this fraction more of the scene than the
        prepared crops; what lies outside of these is filled by reflection.
    shard: numbers of the samples of every batch that this process trains on; None for all.

    Raises:
        ParameterError: all clips are shorter than `clip_length`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        num_references: int,
        num_steps: int,
        seed: int,
        speaker_sampling_exponent: float = 1.0,
        clip_length: int = 1,
        references_per_frame: bool = False,
        augment: bool = True,
        crop_scale_jitter: float = 0.0,
        shard: Sequence[int] | None = None,
    ) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.num_references = num_references
        self.num_steps = num_steps
        self.seed = seed
        self.clip_length = clip_length
        self.references_per_frame = references_per_frame
        self.augment = augment
        self.crop_scale_jitter = crop_scale_jitter
        self.shard = range(batch_size) if shard is None else shard
        self.cumulative = np.cumsum(clip_probabilities(clips, speaker_sampling_exponent, clip_length))

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        samples, scales = [], []
        for number in draw_clips(rng, self.cumulative, self.batch_size):
            clip = self.clips[number]
            indices = rng.integers(len(clip.frames) - self.clip_length + 1) + np.arange(self.clip_length)
            sets = self.clip_length if self.references_per_frame else 1
            references = np.stack(
                [reference_indices(rng, len(clip.frames), indices, self.num_references) for _ in range(sets)]
            )
            augmentation = sample_augmentation(rng) if self.augment else (1.0, 0.0, False)
            samples.append((clip, indices, references, *augmentation))
            of_target, *of_references = 1 + rng.uniform(0, self.crop_scale_jitter, 1 + references.size)
            scales.append([*[of_target] * self.clip_length, *of_references])
        clip_ids = [clip.id for clip, *_ in samples]
        batch = stack_samples([samples[number] for number in self.shard], [scales[number] for number in self.shard])
        return batch._replace(clip_ids=clip_ids)


class SyncBatches(torch.utils.data.Dataset):
    """Item k is the `SyncBatch` of SyncNet's training step k: random windows with matched and mismatched audio.

    On average half of the negatives come from the same clip, `negative_gap` frames or more away, and teach the
    timing. The others come from other speakers and teach that the voice does not depend on the face. Mouths are
    augmented as in TrainingBatches and also shifted by up to S/16 pixels; `speaker_sampling_exponent` and `shard`
    are as there, as is what becomes of clips that are too short.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        batch_size: int,
        num_steps: int,
        seed: int,
        num_negatives: int,
        negative_gap: int,
        speaker_sampling_exponent: float = 1.0,
        shard: Sequence[int] | None = None,
    ) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.seed = seed
        self.num_negatives = num_negatives
        self.negative_gap = negative_gap
        self.shard = range(batch_size) if shard is None else shard
        self.probabilities = clip_probabilities(clips, speaker_sampling_exponent, CLIP_LENGTH)
        self.cumulative = np.cumsum(self.probabilities)
        _, self.speakers = np.unique([clip.speaker for clip in clips], return_inverse=True)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> SyncBatch:
        rng = np.random.default_rng((self.seed, step))
        samples, clip_ids = [], []
        for number in draw_clips(rng, self.cumulative, self.batch_size):
            clip = self.clips[number]
            middle = int(rng.integers(SYNC_HALF, len(clip.frames) - SYNC_HALF))
            audio_frames = [(clip, middle), *self._negatives(rng, number, middle)]
            augmentation = sample_augmentation(rng)
            max_shift = mouth_size_of(clip.frames.shape[1]) // 16
            samples.append((audio_frames, *augmentation, *rng.integers(-max_shift, max_shift + 1, 2)))
            clip_ids.append(clip.id)
        samples = [samples[number] for number in self.shard]
        mouths = [mouth_stack(*audio_frames[0], *augmentation) for audio_frames, *augmentation in samples]
        audio = [
            [audio_windows(clip.features, np.array([middle]), SYNC_RADIUS)[0] for clip, middle in audio_frames]
            for audio_frames, *_ in samples
        ]
        return SyncBatch(torch.from_numpy(np.stack(mouths)), torch.from_numpy(np.array(audio)), clip_ids)

    def _negatives(self, rng: np.random.Generator, number: int, middle: int) -> list[tuple[Clip, int]]:
        """Sample (clip, middle frame) of `num_negatives` audio windows that do not match a frame of a clip."""
        clip = self.clips[number]
        candidates = np.arange(SYNC_HALF, len(clip.frames) - SYNC_HALF)
        candidates = candidates[np.abs(candidates - middle) >= self.negative_gap]
        num_same_clip = rng.binomial(self.num_negatives, 0.5) if len(candidates) else 0
        negatives = []
        if num_same_clip:
            negatives += [(clip, int(index)) for index in rng.choice(candidates, num_same_clip)]
        cumulative = np.cumsum(np.where(self.speakers != self.speakers[number], self.probabilities, 0))
        if not cumulative[-1]:  # a dataset of one speaker: sample from all clips instead
            cumulative = self.cumulative
        for other_number in draw_clips(rng, cumulative, self.num_negatives - num_same_clip):
            other = self.clips[other_number]
            negatives.append((other, int(rng.integers(SYNC_HALF, len(other.frames) - SYNC_HALF))))
        return negatives


def clip_probabilities(clips: Sequence[Clip], speaker_sampling_exponent: float, clip_length: int = 1) -> np.ndarray:
    """Sampling probabilities of clips, (number of clips,).

    A speaker with n frames gets a probability ∝ n ** speaker_sampling_exponent, divided among the speaker's clips
    in proportion to their frames. Clips shorter than `clip_length` do not count; a warning tells how many.

    Raises:
        ParameterError: all clips are shorter.
    """
    lengths = [len(clip.frames) for clip in clips]
    if max(lengths) < clip_length:
        reason = f"a sample needs clips of {clip_length} frames or more, the longest has {max(lengths)}"
        raise ParameterError("data", reason)
    if num_short := sum(length < clip_length for length in lengths):
        message = "%d of %d clips have fewer than %d frames and are not trained on; the shortest has %d"
        counts = (num_short, len(clips), clip_length, min(lengths))
        logger.warning(message, *counts, extra={"parameter": "data"})
    counted = [length if length >= clip_length else 0 for length in lengths]
    num_frames: Counter[str] = Counter()
    for clip, count in zip(clips, counted, strict=True):
        num_frames[clip.speaker] += count
    weights = np.array(
        [
            count and count * num_frames[clip.speaker] ** (speaker_sampling_exponent - 1)
            for clip, count in zip(clips, counted, strict=True)
        ]
    )
    return weights / weights.sum()


def draw_clips(rng: np.random.Generator, cumulative: np.ndarray, count: int) -> list[int]:
    """Sample numbers of clips as `rng.choice` does, which would sum up the probabilities each time.

    cumulative: (number of clips,), the cumulative sum of probabilities, of any total.
    """
    return np.searchsorted(cumulative, cumulative[-1] * rng.random(count), side="right").tolist()


def reference_indices(
    rng: np.random.Generator, num_frames: int, indices: int | np.ndarray, count: int
) -> np.ndarray:
    """Sample `count` reference frames of a clip for the target frames `indices`.

    References are distinct and at least REFERENCE_GAP from every target frame if the clip is long enough. Otherwise
    they come from the whole clip, and repeat if it has fewer than `count` frames.
    """
    candidates = np.arange(num_frames)
    distances = np.abs(candidates[:, None] - np.atleast_1d(indices)).min(axis=1)
    distant = candidates[distances >= REFERENCE_GAP]
    candidates = distant if len(distant) >= count else candidates
    return rng.choice(candidates, count, replace=len(candidates) < count)


def sample_augmentation(rng: np.random.Generator) -> tuple[float, float, bool]:
    """Sample gain and bias of the pixel values, and whether to mirror."""
    return rng.uniform(0.85, 1.15), rng.uniform(-0.06, 0.06), rng.random() < 0.5


def make_batch(samples: list[Sample]) -> Batch:
    """Stack samples, all with the same number of target frames, into a batch of float32 images in [0, 1]."""
    batch = stack_samples(samples)
    return batch._replace(target=to_float(batch.target), references=to_float(batch.references))


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [0, 1], on their device."""
    return images.float() / 255


def stack_samples(samples: list[Sample], scales: list[list[float]] | None = None) -> Batch:
    """Stack samples, all with the same number of target frames, into a batch of uint8 images.

    scales: for each sample, by how much the crops of its target and reference frames are enlarged (`zoom_out`).
    """
    targets, references, audio, sync_audio = [], [], [], []
    for number, (clip, indices, reference, gain, bias, mirror) in enumerate(samples):
        indices, sets = np.atleast_1d(indices), np.atleast_2d(reference)
        crops = clip.frames[[*indices, *sets.ravel()]]
        if scales:
            crops = np.stack([zoom_out(crop, scale) for crop, scale in zip(crops, scales[number], strict=True)])
        images = _augment(crops, gain, bias, mirror)
        targets.append(images[: len(indices)])
        references.append(images[len(indices) :].reshape(len(sets), -1, *images.shape[2:]))
        audio.append(audio_windows(clip.features, indices))
        middle = indices[len(indices) // 2]
        sync_audio.append(audio_windows(clip.features, np.array([middle]), WINDOW_RADIUS + len(indices) // 2)[0])
    return Batch(
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate(references)),
        torch.from_numpy(np.concatenate(audio)),
        torch.from_numpy(np.stack(sync_audio)),
        [sample[0].id for sample in samples],
    )


def zoom_out(crop: np.ndarray, scale: float) -> np.ndarray:
    """A face crop (H, W, 3) uint8 as if its radius were `scale` ≥ 1 times as large, around the same anchor.

    What lies outside of the given crop is filled by reflection.
    """
    if scale == 1:
        return crop
    height, width = crop.shape[:2]
    x, y = width / 2 - 0.5, mouth_size_of(height) / 2 - 0.5  # landmarks 33 (x) and 29 (y), see FaceCrop
    matrix = np.array([[scale, 0, (1 - scale) * x], [0, scale, (1 - scale) * y]])
    options = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REFLECT_101}
    return cv2.warpAffine(crop, matrix, (width, height), **options)


def mouth_stack(
    clip: Clip,
    middle: int,
    gain: float = 1.0,
    bias: float = 0.0,
    mirror: bool = False,
    down: int = 0,
    right: int = 0,
) -> np.ndarray:
    """The mouth boxes of the five frames around frame `middle`, augmented: (15, S, S) uint8 RGB.

    down, right: pixels by which the mouth box is shifted.
    """
    rows, columns = mouth_box(mouth_size_of(clip.frames.shape[1]))
    rows, columns = slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
    frames = clip.frames[middle - SYNC_HALF : middle + SYNC_HALF + 1, rows, columns]
    return np.ascontiguousarray(_augment(frames, gain, bias, mirror).reshape(-1, *frames.shape[1:3]))


def _augment(frames: np.ndarray, gain: float, bias: float, mirror: bool) -> np.ndarray:
    """Augmented images: uint8 (T, H, W, 3) -> uint8 (T, 3, H, W). Gain and bias are for images in [0, 1]."""
    levels = np.rint(np.clip(np.arange(256) * gain + 255 * bias, 0, 255)).astype(np.uint8)
    rows = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])
    images = np.ascontiguousarray(cv2.LUT(rows, levels).reshape(frames.shape).transpose(0, 3, 1, 2))
    return images[..., ::-1] if mirror else images
