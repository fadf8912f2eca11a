"""Prepared dataset -> training samples.

All clips are held decoded as uint8 at the size of the training (45 minutes at S = 64: 1.7 GB), in memory or, where
they do not fit, in files that are read as memory. A batch is a pure function of (seed, step), so a resumed run sees
exactly what an unbroken one would have; of several processes each takes its share of it.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count, sysconf
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import cv2
import joblib
import numpy as np
import torch
from tqdm import tqdm

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.audio.framing import WINDOW_RADIUS, audio_windows
from data_processing.face.lips import LIP_FEATURES, LIPS, lip_features
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from models.crop_layout import crop_size, mouth_box, mouth_size_of
from models.syncnet import SYNC_WINDOW
from utils.errors import UserError
from utils.files import read_jsonl, write_atomically

SYNC_RADIUS = SYNC_WINDOW // 2  # steps of audio features around the middle of the five frames SyncNet judges
ALL = slice(None)
REFERENCE_GAP = 5  # frames: references nearer to the drawn frame than this would show the answer


@dataclass(frozen=True)
class Clip:
    """One clip in memory: frames (T, 13S/8, 5S/4, 3) uint8 RGB, features (T, D), landmarks (T, 68, 2) float32."""

    id: str
    speaker: str
    frames: np.ndarray
    features: np.ndarray
    landmarks: np.ndarray


# One sample: clip, index or indices of its frames, indices of its references, gain, bias, mirrored.
Sample = tuple[Clip, int | np.ndarray, np.ndarray, float, float, bool]


class Batch(NamedTuple):
    """B clips of T consecutive frames, T = 1 in the frame stage; images are RGB in [0, 1].

    target: (B·T, 3, H, W), the frames of a clip one after another; references: (B, 3N, H, W);
    audio_window: (B·T, D, 5); sync_audio: (B, D, T + 4), the audio windows of a clip's frames together.
    clip_ids: names of the whole batch's clips, for messages.
    """

    target: torch.Tensor
    references: torch.Tensor
    audio_window: torch.Tensor
    sync_audio: torch.Tensor
    clip_ids: list[str]


class SyncBatch(NamedTuple):
    """Mouths with their own sound and with a wrong one.

    mouths: (B, 15, S, S), five frames each, RGB in [0, 1]; sounds: (B, 1 + K, D, 9), each moment's own before the K
    wrong ones; clip_ids: names of the whole batch's clips.
    """

    mouths: torch.Tensor
    sounds: torch.Tensor
    clip_ids: list[str]


def load_clips(data: Path, split: str, mouth_size: int, audio_features: str, processes: int = 1) -> list[Clip]:
    """Decode one split ('train' or 'val') of a prepared dataset.

    Audio features other than it was prepared with are extracted from the clips' own sound, once, into files under
    `data`/features; LIPS come from the landmarks.

    Where `processes` times the frames do not fit into memory, they are decoded once into files under
    `data`/decoded, and read from there as they are needed.

    Raises:
        UserError: not a prepared dataset, an empty split, a clip that cannot be read (named), or no room for the
            files.
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
    height, width = crop_size(mouth_size)
    needed = sum(line["num_frames"] for line in lines) * height * width * 3
    available = sysconf("SC_AVPHYS_PAGES") * sysconf("SC_PAGE_SIZE")
    decoded = None
    if processes * needed > 0.8 * available:
        decoded = data / "decoded" / f"{mouth_size}"
        print(
            f"{split}: {processes} x {needed / 1e9:.1f} GB do not fit into {available / 1e9:.1f} GB of memory; "
            f"read from {decoded} instead"
        )
    _extract_missing(data, lines, audio_features)
    with ThreadPoolExecutor(cpu_count()) as pool:  # decoding leaves Python's lock
        pictures = pool.map(lambda line: _pictures(data, line, mouth_size, decoded), lines)
        # Not in the pool: NumPy parses headers as Python, and threads of Python 3.11 cannot parse at the same time.
        loaded = (_join(data, line, frames, audio_features) for line, frames in zip(lines, pictures, strict=True))
        return list(tqdm(loaded, total=len(lines), unit="clip", desc=f"loading {split}"))


def _pictures(data: Path, line: dict, mouth_size: int, decoded: Path | None) -> np.ndarray | Path:
    """The frames of a clip, or the file under `decoded` that has them."""
    if decoded is None:
        return _decode(data, line, mouth_size)
    path = decoded / f"{line['id']}.npy"
    if not path.exists():
        _keep(path, _decode(data, line, mouth_size))
    return path


def _join(data: Path, line: dict, pictures: np.ndarray | Path, audio_features: str) -> Clip:
    frames = _read(pictures) if isinstance(pictures, Path) else pictures
    features, landmarks = _load_arrays(data, line, audio_features)
    for name, rows in (("features", features), ("landmarks", landmarks)):
        if len(rows) != len(frames):
            raise UserError(f"--data: clip {line['id']}: {len(frames)} frames but {len(rows)} rows of {name}")
    return Clip(line["id"], line["person"], frames, features, landmarks)


def load_features(data: Path, split: str, audio_features: str) -> list[np.ndarray]:
    """The features (T, D) alone of the clips of `load_clips`, in its order. Raises UserError as it does."""
    lines = [line for line in read_jsonl(data / "manifest.jsonl") if line["split"] == split]
    _extract_missing(data, lines, audio_features)
    return [_load_arrays(data, line, audio_features)[0] for line in lines]


def _load_arrays(data: Path, line: dict, audio_features: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (T, D) and landmarks (T, 68, 2) of one clip."""
    try:
        with np.load(data / "clips" / f"{line['id']}.npz", allow_pickle=False) as arrays:
            features = arrays["features"].astype(np.float32)
            landmarks = arrays["landmarks"].astype(np.float32)
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise UserError(f"--data: clip {line['id']}: its .npz cannot be read ({error})") from None
    if audio_features == LIPS:
        features = lip_features(landmarks)
    elif audio_features != line["audio_features"]:
        features = _read(_features_path(data, line, audio_features))
    return features, landmarks


def _features_path(data: Path, line: dict, audio_features: str) -> Path:
    return data / "features" / audio_features / f"{line['id']}.npy"


def _extract_missing(data: Path, lines: list[dict], audio_features: str) -> None:
    """Extract features that the clips were not prepared with, in processes of their own: TensorFlow, which some of
    them need, cannot live with everything that a training needs."""

    def stale(line: dict, clip: Path) -> bool:
        path = _features_path(data, line, audio_features)
        if line["audio_features"] == audio_features or not clip.exists():
            return False
        return not path.exists() or path.stat().st_mtime < clip.stat().st_mtime

    clips = [(line, data / "clips" / f"{line['id']}.mp4") for line in lines if audio_features != LIPS]
    missing = [
        (clip, audio_features, line["num_frames"], _features_path(data, line, audio_features))
        for line, clip in clips
        if stale(line, clip)
    ]
    if missing:
        done = joblib.Parallel(n_jobs=-1, return_as="generator_unordered")(
            joblib.delayed(_extract_one)(*arguments) for arguments in missing
        )
        list(tqdm(done, total=len(missing), unit="clip", desc=f"{audio_features} features"))


def _extract_one(clip: Path, audio_features: str, num_frames: int, path: Path) -> None:
    _keep(path, extract_features(load_audio(clip), audio_features, num_frames))


def _keep(path: Path, array: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--data: cannot make the folder {path.parent}: {error.strerror}") from None
    write_atomically(path, lambda file: np.save(file, array))


def _read(path: Path) -> np.ndarray:
    """An array in a file, read as memory."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--data: {path}: cannot be read: {error}") from None


def _decode(data: Path, line: dict, mouth_size: int) -> np.ndarray:
    height, width = crop_size(mouth_size)
    path = data / "clips" / f"{line['id']}.mp4"
    frames = np.empty((line["num_frames"], height, width, 3), np.uint8)
    count = 0
    for count, frame in enumerate(read_frames(path), 1):
        if count > len(frames):
            break
        shrink = cv2.INTER_AREA if frame.shape[0] > height else cv2.INTER_CUBIC
        frames[count - 1] = cv2.resize(frame, (width, height), interpolation=shrink)
    if count != len(frames):
        raise UserError(f"--data: clip {line['id']}: expected {len(frames)} frames, found {count}")
    return frames


def feature_dim(name: str) -> int:
    """Features per frame, of a sound or of LIPS."""
    return LIP_FEATURES if name == LIPS else FEATURE_DIMS[name]


def reference_indices(
    rng: np.random.Generator, num_frames: int, indices: int | np.ndarray, count: int
) -> np.ndarray:
    """`count` random frames of a clip, at least REFERENCE_GAP from the frames `indices` where that can be."""
    candidates = np.arange(num_frames)
    distance = np.abs(candidates[:, None] - np.atleast_1d(indices)).min(axis=1)
    apart = candidates[distance >= REFERENCE_GAP]
    candidates = apart if len(apart) >= count else candidates
    return rng.choice(candidates, count, replace=len(candidates) < count)


class TrainingBatches(torch.utils.data.Dataset):
    """Item k is the batch of training step k: random frames with random references from their clips.

    A person with n frames is drawn with probability ∝ n ** speaker_sampling_exponent: 1 draws evenly over all frames, more leans
    to the long recordings of few people, from which the sound is learned sooner, less to the many faces.

    Half of the samples are mirrored, and all have their brightness and contrast changed a little: people and
    lights to come differ more than those at hand.

    share: the part of every batch that this process trains on.
    """

    def __init__(
        self,
        clips: list[Clip],
        batch_size: int,
        num_references: int,
        num_steps: int,
        seed: int,
        speaker_sampling_exponent: float = 1.0,
        clip_length: int = 1,
        share: slice = ALL,
    ) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.num_references = num_references
        self.num_steps = num_steps
        self.seed = seed
        self.clip_length = clip_length
        self.share = share
        self.probabilities = clip_probabilities(clips, speaker_sampling_exponent)

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        samples = []
        for number in rng.choice(len(self.clips), self.batch_size, p=self.probabilities):
            clip = self.clips[number]
            indices = rng.integers(len(clip.frames) - self.clip_length + 1) + np.arange(self.clip_length)
            references = reference_indices(rng, len(clip.frames), indices, self.num_references)
            samples.append((clip, indices, references, *sample_augmentation(rng)))
        ids = [clip.id for clip, *_ in samples]
        return make_batch(samples[self.share])._replace(clip_ids=ids)


class SyncBatches(torch.utils.data.Dataset):
    """Item k is the batch of SyncNet's step k: random moments, each with its own sound and with wrong ones.

    A wrong sound is, in equal shares, from elsewhere in the same clip, `negative_gap` frames away or more, and
    from another person; the first teaches the moment, the second the voice's independence of the face. Mouths are
    mirrored and changed in brightness as in TrainingBatches, and moved by up to S/16 pixels. `share` as there.
    """

    def __init__(
        self,
        clips: list[Clip],
        batch_size: int,
        num_steps: int,
        seed: int,
        num_negatives: int,
        negative_gap: int,
        speaker_sampling_exponent: float = 1.0,
        share: slice = ALL,
    ) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.seed = seed
        self.num_negatives = num_negatives
        self.negative_gap = negative_gap
        self.share = share
        self.probabilities = clip_probabilities(clips, speaker_sampling_exponent)
        self.people = np.array([clip.speaker for clip in clips])

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> SyncBatch:
        rng = np.random.default_rng((self.seed, step))
        moments, ids = [], []
        for number in rng.choice(len(self.clips), self.batch_size, p=self.probabilities):
            clip = self.clips[number]
            middle = int(rng.integers(2, len(clip.frames) - 2))
            heard = [(clip, middle), *self._wrong(rng, clip, middle)]
            reach = mouth_size_of(clip.frames.shape[1]) // 16
            moments.append((heard, *sample_augmentation(rng), *rng.integers(-reach, reach + 1, 2)))
            ids.append(clip.id)
        mouths = [mouth_stack(*heard[0], *looks) for heard, *looks in moments[self.share]]
        sounds = [
            [audio_windows(of.features, np.array([when]), SYNC_RADIUS)[0] for of, when in heard]
            for heard, *_ in moments[self.share]
        ]
        return SyncBatch(torch.from_numpy(np.stack(mouths)), torch.from_numpy(np.array(sounds)), ids)

    def _wrong(self, rng: np.random.Generator, clip: Clip, middle: int) -> list[tuple[Clip, int]]:
        """Clips and frames of `num_negatives` sounds."""
        candidates = np.arange(2, len(clip.frames) - 2)
        candidates = candidates[np.abs(candidates - middle) >= self.negative_gap]
        own = rng.binomial(self.num_negatives, 0.5) if len(candidates) else 0
        found = [(clip, int(when)) for when in rng.choice(candidates, own)] if own else []
        weights = np.where(self.people != clip.speaker, self.probabilities, 0)
        if not weights.any():  # a dataset of one person: any other moment has to do
            weights = self.probabilities
        for number in rng.choice(len(self.clips), self.num_negatives - own, p=weights / weights.sum()):
            other = self.clips[number]
            found.append((other, int(rng.integers(2, len(other.frames) - 2))))
        return found


def clip_probabilities(clips: list[Clip], speaker_sampling_exponent: float) -> np.ndarray:
    """(number of clips,) probabilities with which clips are drawn: of a person ∝ (their frames) ** speaker_sampling_exponent."""
    frames_of = Counter()
    for clip in clips:
        frames_of[clip.speaker] += len(clip.frames)
    weights = np.array(
        [len(clip.frames) * frames_of[clip.speaker] ** (speaker_sampling_exponent - 1) for clip in clips]
    )
    return weights / weights.sum()


def sample_augmentation(rng: np.random.Generator) -> tuple[float, float, bool]:
    """Gain, bias and whether to mirror."""
    return rng.uniform(0.85, 1.15), rng.uniform(-0.06, 0.06), rng.random() < 0.5


def make_batch(samples: list[Sample]) -> Batch:
    """Stack samples, all of as many frames, into a batch."""
    targets, references, audio, sync_audio = [], [], [], []
    for clip, indices, reference, gain, bias, mirror in samples:
        indices = np.atleast_1d(indices)
        images = _augment(clip.frames[[*indices, *reference]], gain, bias, mirror)
        targets.append(images[: len(indices)])
        references.append(images[len(indices) :].reshape(-1, *images.shape[2:]))
        audio.append(audio_windows(clip.features, indices))
        middle = indices[len(indices) // 2]
        sync_audio.append(audio_windows(clip.features, np.array([middle]), WINDOW_RADIUS + len(indices) // 2)[0])
    return Batch(
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.stack(references)),
        torch.from_numpy(np.concatenate(audio)),
        torch.from_numpy(np.stack(sync_audio)),
        [sample[0].id for sample in samples],
    )


def _augment(frames: np.ndarray, gain: float, bias: float, mirror: bool) -> np.ndarray:
    """uint8 (T, H, W, 3) -> float32 (T, 3, H, W) in [0, 1] with other looks."""
    images = np.clip(frames.astype(np.float32) / 255 * gain + bias, 0, 1)
    images = images[:, :, ::-1] if mirror else images
    return images.transpose(0, 3, 1, 2)


def mouth_stack(
    clip: Clip,
    middle: int,
    gain: float = 1.0,
    bias: float = 0.0,
    mirror: bool = False,
    down: int = 0,
    right: int = 0,
) -> np.ndarray:
    """The mouth boxes, moved by some pixels, of five frames around frame `middle`: (15, S, S) float32 in [0, 1]."""
    rows, columns = mouth_box(mouth_size_of(clip.frames.shape[1]))
    rows, columns = slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
    frames = clip.frames[middle - 2 : middle + 3, rows, columns]
    return np.ascontiguousarray(_augment(frames, gain, bias, mirror).reshape(-1, *frames.shape[1:3]))
