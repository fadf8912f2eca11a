"""What a prepared dataset has per frame, packed into a few memory-mapped files for training.

Hundreds of hours are hundreds of thousands of clips: more than a process may have open files or mappings. Therefore
the arrays of all clips of a split are written one after another when the split is used for the first time:

    packed/SPLIT-HASH/index.npy           one row per clip: see `PackedSplit`
    packed/SPLIT-HASH/landmarks.npy       (N, 68, 2) float32
    packed/SPLIT-HASH/features-KIND.npy   (N, D) float32
    packed/SPLIT-HASH/frames-S.jpegs      frames: see data_processing/frame_store.py

HASH is that of the split's lines in manifest.jsonl. When they change, the split is packed again. Old folders are
removed as soon as no process has them open, which locks on index.npy show; where the file system has no locks, they
stay. `packed` can be deleted while nothing trains on it.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.face.lips import LIP_FEATURES, LIPS, lip_features
from data_processing.frame_store import BLOCK_FRAMES, map_array
from data_processing.media.audio_io import load_audio
from data_processing.workers import in_workers
from utils.errors import DatasetError, OutputError, error_reason
from utils.files import atomic_path, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PackedSplit:
    """The packed files of a split, memory-mapped.

    data, split, audio_features: see `open_packed`.
    folder: where the files are.
    index: one row per clip with the fields id, speaker (UTF-8), first_frame (its first row in the arrays),
        num_frames, and first_block (of `FrameStore`).
    landmarks: (N, 68, 2) float32, (x, y) in source pixels.
    features: (N, D) float32.
    in_use: index.npy, with a lock that keeps other processes from removing the folder.
    """

    data: Path
    split: str
    audio_features: str
    folder: Path
    index: np.ndarray
    landmarks: np.ndarray
    features: np.ndarray
    in_use: BinaryIO

    @property
    def num_frames(self) -> int:
        """N, of all clips."""
        return len(self.landmarks)

    @property
    def num_blocks(self) -> int:
        """Of all clips (see `FrameStore`)."""
        return int(self.index["first_block"][-1]) + -(-int(self.index["num_frames"][-1]) // BLOCK_FRAMES)

    def __reduce__(self) -> tuple:  # a process that is not forked maps the files itself
        return open_packed, (self.data, self.split, self.audio_features)


def feature_dim(name: str) -> int:
    """D, the number of features per frame, for a kind of audio features or LIPS."""
    return LIP_FEATURES if name == LIPS else FEATURE_DIMS[name]


def clip_path(data: Path, clip_id: str) -> Path:
    """The video of a clip."""
    return data / "clips" / f"{clip_id}.mp4"


def manifest_lines(data: Path, split: str | None = None) -> list[str]:
    """The lines of manifest.jsonl, of one split or all, sorted: `prepare` writes them as the videos are finished.

    Raises:
        DatasetError: `data` is not a prepared dataset, or has no such line.
    """
    manifest = data / "manifest.jsonl"
    if not manifest.is_file():
        raise DatasetError(
            data, f"not a prepared dataset (no {manifest.name}); prepare one with data_processing.prepare"
        )
    lines = []
    for line in sorted(manifest.read_text().splitlines()):
        try:
            if split in (None, json.loads(line).get("split")):  # prepare sets it at its end
                lines.append(line)
        except json.JSONDecodeError:
            logger.warning("%s: dropped an incomplete line", manifest, extra={"path": manifest})
    if not lines and split:
        raise DatasetError(
            data, f"no clip in the {split} split; prepare more speakers or hold out a larger percentage of them"
        )
    if not lines:
        raise DatasetError(data, "no clip; see rejected.jsonl in it for the reasons")
    return lines


def digest(lines: list[str]) -> str:
    """A hash of lines: 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@contextmanager
def hint_at_links() -> Iterator[None]:
    """Add to an OutputError of the body, if a dataset must not be written, how it can be used all the same."""
    try:
        yield
    except OutputError as error:
        if getattr(error.__cause__, "errno", None) in (errno.EROFS, errno.EACCES):
            hint = "use a folder of your own with symbolic links to manifest.jsonl and clips of the dataset"
            error.args = (f"{error}; {hint}",)
        raise


@hint_at_links()
def open_packed(data: Path, split: str, audio_features: str) -> PackedSplit:
    """Open the packed files of a split, and write those that are missing.

    Args:
        data: folder of the prepared dataset.
        split: "train" or "val".
        audio_features: kind of audio features, or LIPS for lip features, which are computed from the landmarks. If
            the clips were prepared with another kind, the features are extracted from the audio tracks of the
            clips, once, and kept under `data`/features.

    Raises:
        DatasetError: `data` is not a prepared dataset, the split is empty, or a clip cannot be read.
        MediaError: the audio track of a clip cannot be read.
        OutputError: a file cannot be written.
    """
    lines = manifest_lines(data, split)
    folder = data / "packed" / f"{split}-{digest(lines)}"
    in_use = _open_index(folder, lines)
    clips = map_array(folder / "index.npy")
    for unused in folder.parent.glob(f"{split}-*.unused"):  # of a process that was killed, or is removing it
        shutil.rmtree(unused, ignore_errors=True)
    for other in folder.parent.glob(f"{split}-*/index.npy"):
        if other.parent != folder:
            with suppress(OSError), other.open("rb") as file:  # another process may remove it, too
                if _lock(file, exclusive=True):
                    unused = other.parent.with_suffix(".unused")  # where no process looks for it
                    shutil.rmtree(other.parent.rename(unused))
    arrays = {"landmarks": folder / "landmarks.npy", "features": folder / f"features-{audio_features}.npy"}
    if missing := {name: path for name, path in arrays.items() if not path.exists()}:
        if audio_features != LIPS:
            extract_missing(data, lines, audio_features)
        _write_rows(missing, clips, (_read_clip(data, line, audio_features) for line in lines))
    maps = {name: map_array(path) for name, path in arrays.items()}
    return PackedSplit(data, split, audio_features, folder, clips, **maps, in_use=in_use)


def _open_index(folder: Path, lines: list[str]) -> BinaryIO:
    """index.npy in the folder, written if it is missing, with a lock against removal."""
    index = folder / "index.npy"
    while True:
        if not index.exists():
            _create_folder(folder)
            write_atomically(index, lambda file: np.save(file, _make_index(lines)))
        with suppress(FileNotFoundError):  # another process removed the folder before it was locked
            file = index.open("rb")
            _lock(file, exclusive=False)
            if os.path.samestat(os.fstat(file.fileno()), index.stat()):
                return file
            file.close()


def _lock(file: BinaryIO, *, exclusive: bool) -> bool:
    """Lock an open file until it is closed, here and in the processes that inherit it; return whether it worked.

    A shared lock waits for the process that has the exclusive one, which is about to remove the file.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except OSError:  # locked by another process, or a file system without locks
        return False
    return True


def _make_index(lines: list[str]) -> np.ndarray:
    clips = [json.loads(line) for line in lines]
    names = [[clip[key].encode(errors="surrogateescape") for clip in clips] for key in ("id", "person")]
    num_frames = np.array([clip["num_frames"] for clip in clips])
    num_blocks = -(-num_frames // BLOCK_FRAMES)
    kinds = [("id", f"S{max(map(len, names[0]))}"), ("speaker", f"S{max(map(len, names[1]))}")]
    kinds += [(name, "<i8") for name in ("first_frame", "num_frames", "first_block")]
    first_frame, first_block = (np.cumsum(counts) - counts for counts in (num_frames, num_blocks))
    return np.rec.fromarrays([*names, first_frame, num_frames, first_block], dtype=kinds).view(np.ndarray)


def _write_rows(paths: dict[str, Path], index: np.ndarray, clips: Iterable[dict[str, np.ndarray]]) -> None:
    """Write .npy files with the named arrays (T, …) of all clips one after another."""
    clips = iter(tqdm(clips, total=len(index), unit="clip", desc="packing"))
    first = next(clips)
    with ExitStack() as stack:
        files = {}
        for name, path in paths.items():
            files[name] = stack.enter_context(stack.enter_context(atomic_path(path)).open("wb"))
            shape = (int(index["num_frames"].sum()), *first[name].shape[1:])
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for arrays in chain([first], clips):
            for name, file in files.items():
                file.write(arrays[name].astype("<f4").tobytes())


def _read_clip(data: Path, line: str, audio_features: str) -> dict[str, np.ndarray]:
    """Landmarks (T, 68, 2) and features (T, D) of one clip."""
    clip = json.loads(line)
    video = clip_path(data, clip["id"])
    if not video.is_file():
        raise DatasetError(video, "no such file")
    path = video.with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("landmarks", "features")}
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise DatasetError(path, f"cannot be read: {error_reason(error)}") from None
    if audio_features == LIPS:
        arrays["features"] = lip_features(arrays["landmarks"].astype(np.float32))
    elif audio_features != clip["audio_features"]:
        arrays["features"] = map_array(_features_path(data, clip, audio_features))
    for name, array in arrays.items():
        if len(array) != clip["num_frames"]:
            raise DatasetError(video, f"{clip['num_frames']} frames but {len(array)} rows of {name}")
    return arrays


def _features_path(data: Path, clip: dict, audio_features: str) -> Path:
    return data / "features" / audio_features / f"{clip['id']}.npy"


def extract_missing(
    data: Path, lines: list[str], audio_features: str, jobs: int = -1, scheduler: str | None = None
) -> None:
    """Extract the features that the clips were not prepared with, as far as `data`/features lacks them.

    In processes of their own: TensorFlow, which DeepSpeech needs, conflicts with libraries of the training process.

    Args:
        lines: of `manifest_lines`.
        jobs, scheduler: see `in_workers`.

    Raises:
        ParameterError: there is no scheduler.
        UserError: the audio track of a clip cannot be read, or the features cannot be written.
    """
    missing = []
    for clip in map(json.loads, lines):
        video, path = clip_path(data, clip["id"]), _features_path(data, clip, audio_features)
        if clip["audio_features"] == audio_features or not video.exists():
            continue
        if not path.exists() or path.stat().st_mtime < video.stat().st_mtime:
            missing.append((video.resolve(), clip["num_frames"], path.resolve()))
    work = partial(_extract_one, audio_features)
    if missing:
        list(in_workers(work, missing, jobs, scheduler, unit="clip", description=f"{audio_features} features"))


@hint_at_links()
def _extract_one(audio_features: str, clip: tuple[Path, int, Path]) -> None:
    video, num_frames, path = clip
    features = extract_features(load_audio(video), audio_features, num_frames)
    _create_folder(path.parent)
    write_atomically(path, lambda file: np.save(file, features))


def _create_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(path, f"cannot create the folder: {error_reason(error)}") from error
