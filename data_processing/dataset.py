"""Read a prepared dataset (data_processing.prepare): clips with their frames, audio features and landmarks.

All frames are held decoded, as uint8 at the mouth size of the training (45 minutes at S = 64: 1.7 GB). If they do
not fit into memory, they are decoded once into files, which are then memory-mapped.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count, sysconf
from pathlib import Path
from zipfile import BadZipFile

import cv2
import joblib
import numpy as np
from tqdm import tqdm

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.face.lips import LIP_FEATURES, LIPS, lip_features
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from models.crop_layout import crop_size
from utils.errors import DatasetError, OutputError, error_reason
from utils.files import read_jsonl, write_atomically

MEMORY_FRACTION = 0.8  # of the free memory that decoded frames may fill

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One clip of a prepared dataset.

    id: name of the clip and of its files.
    speaker: name of the speaker.
    frames: (T, 13S/8, 5S/4, 3) uint8 RGB face crops, in memory or memory-mapped.
    features: (T, D) float32 audio features, or lip features (LIPS).
    landmarks: (T, 68, 2) float32, (x, y) in source pixels.
    """

    id: str
    speaker: str
    frames: np.ndarray
    features: np.ndarray
    landmarks: np.ndarray


def feature_dim(name: str) -> int:
    """D, the number of features per frame, for a kind of audio features or LIPS."""
    return LIP_FEATURES if name == LIPS else FEATURE_DIMS[name]


def load_clips(data: Path, split: str, mouth_size: int, audio_features: str, processes: int = 1) -> list[Clip]:
    """Load one split of a prepared dataset, with its frames decoded.

    Args:
        data: folder of the prepared dataset.
        split: "train" or "val".
        mouth_size: S of the frames; clips prepared with another S are resized.
        audio_features: kind of audio features, or LIPS for lip features, which are computed from the landmarks. If
            the clips were prepared with another kind, the features are extracted from the audio tracks of the
            clips, once, and kept under `data`/features.
        processes: number of processes on this machine that load the same clips. If `processes` times the frames do
            not fit into memory, the frames are decoded into files under `data`/decoded and memory-mapped.

    Raises:
        DatasetError: `data` is not a prepared dataset, the split is empty, or a clip cannot be read.
        MediaError: the video or audio track of a clip cannot be read.
        OutputError: the decoded frames or the features cannot be written.
    """
    lines = _manifest_lines(data, split)
    height, width = crop_size(mouth_size)
    num_bytes = sum(line["num_frames"] for line in lines) * height * width * 3
    available = sysconf("SC_AVPHYS_PAGES") * sysconf("SC_PAGE_SIZE")
    decoded = None
    if processes * num_bytes > MEMORY_FRACTION * available:
        decoded = data / "decoded" / f"{mouth_size}"
        logger.info(
            "%s: %d x %.1f GB of frames do not fit into %.1f GB of memory; reading them from %s instead",
            split,
            processes,
            num_bytes / 1e9,
            available / 1e9,
            decoded,
        )
    _extract_missing(data, lines, audio_features)
    with ThreadPoolExecutor(cpu_count()) as pool:  # the decoder releases the GIL
        frames = pool.map(lambda line: _frames_or_file(data, line, mouth_size, decoded), lines)
        # not in the pool: NumPy parses array headers as Python code, which is not thread-safe in Python 3.11
        clips = (_join(data, line, item, audio_features) for line, item in zip(lines, frames, strict=True))
        return list(tqdm(clips, total=len(lines), unit="clip", desc=f"loading {split}"))


def load_features(data: Path, split: str, audio_features: str) -> list[np.ndarray]:
    """Load only the features (T, D) of the clips of `load_clips`, in the same order. Raises what it raises."""
    lines = _manifest_lines(data, split)
    _extract_missing(data, lines, audio_features)
    return [_load_arrays(data, line, audio_features)[0] for line in lines]


def _manifest_lines(data: Path, split: str) -> list[dict]:
    manifest = data / "manifest.jsonl"
    if not manifest.is_file():
        raise DatasetError(
            data, f"not a prepared dataset (no {manifest.name}); prepare one with data_processing.prepare"
        )
    lines = [line for line in read_jsonl(manifest) if line["split"] == split]
    if not lines:
        raise DatasetError(
            data, f"no clip in the {split} split; prepare more speakers or hold out a larger percentage of them"
        )
    return lines


def _clip_path(data: Path, line: dict) -> Path:
    return data / "clips" / f"{line['id']}.mp4"


def _features_path(data: Path, line: dict, audio_features: str) -> Path:
    return data / "features" / audio_features / f"{line['id']}.npy"


def _frames_or_file(data: Path, line: dict, mouth_size: int, decoded: Path | None) -> np.ndarray | Path:
    """The frames of a clip, or the file under `decoded` that holds them."""
    if decoded is None:
        return _decode(data, line, mouth_size)
    path = decoded / f"{line['id']}.npy"
    if not path.exists():
        _save_array(path, _decode(data, line, mouth_size))
    return path


def _decode(data: Path, line: dict, mouth_size: int) -> np.ndarray:
    """The frames of a clip, (T, 13S/8, 5S/4, 3) uint8 RGB."""
    height, width = crop_size(mouth_size)
    path = _clip_path(data, line)
    frames = np.empty((line["num_frames"], height, width, 3), np.uint8)
    count = 0
    for count, frame in enumerate(read_frames(path), 1):
        if count > len(frames):
            break
        interpolation = cv2.INTER_AREA if frame.shape[0] > height else cv2.INTER_CUBIC
        frames[count - 1] = cv2.resize(frame, (width, height), interpolation=interpolation)
    if count != len(frames):
        raise DatasetError(path, f"expected {len(frames)} frames, found {count}")
    return frames


def _join(data: Path, line: dict, frames: np.ndarray | Path, audio_features: str) -> Clip:
    if isinstance(frames, Path):
        frames = _map_array(frames)
    features, landmarks = _load_arrays(data, line, audio_features)
    for name, rows in (("features", features), ("landmarks", landmarks)):
        if len(rows) != len(frames):
            raise DatasetError(_clip_path(data, line), f"{len(frames)} frames but {len(rows)} rows of {name}")
    return Clip(line["id"], line["person"], frames, features, landmarks)


def _load_arrays(data: Path, line: dict, audio_features: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (T, D) and landmarks (T, 68, 2) of one clip."""
    path = _clip_path(data, line).with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features = arrays["features"].astype(np.float32)
            landmarks = arrays["landmarks"].astype(np.float32)
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise DatasetError(path, f"cannot be read: {error_reason(error)}") from None
    if audio_features == LIPS:
        features = lip_features(landmarks)
    elif audio_features != line["audio_features"]:
        features = _map_array(_features_path(data, line, audio_features))
    return features, landmarks


def _extract_missing(data: Path, lines: list[dict], audio_features: str) -> None:
    """Extract the features that the clips were not prepared with.

    In processes of their own: TensorFlow, which DeepSpeech needs, conflicts with libraries of the training process.
    """
    if audio_features == LIPS:
        return
    missing = []
    for line in lines:
        clip, path = _clip_path(data, line), _features_path(data, line, audio_features)
        if line["audio_features"] == audio_features or not clip.exists():
            continue
        if not path.exists() or path.stat().st_mtime < clip.stat().st_mtime:
            missing.append((clip, audio_features, line["num_frames"], path))
    if missing:
        done = joblib.Parallel(n_jobs=-1, return_as="generator_unordered")(
            joblib.delayed(_extract_one)(*arguments) for arguments in missing
        )
        list(tqdm(done, total=len(missing), unit="clip", desc=f"{audio_features} features"))


def _extract_one(clip: Path, audio_features: str, num_frames: int, path: Path) -> None:
    _save_array(path, extract_features(load_audio(clip), audio_features, num_frames))


def _save_array(path: Path, array: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(path.parent, f"cannot create the folder: {error_reason(error)}") from None
    write_atomically(path, lambda file: np.save(file, array))


def _map_array(path: Path) -> np.ndarray:
    """Memory-map the array in a file."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(path, f"cannot be read: {error_reason(error)}") from None
