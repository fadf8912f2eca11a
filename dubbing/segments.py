"""A long video written in pieces, so that a job that was stopped can be continued (`--resume`)."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from filelock import FileLock, Timeout

from data_processing.media.audio_track import check_audio_tracks
from data_processing.media.video_writer import VideoWriter, concatenate_videos, frame_packets, open_segment
from utils.errors import UserError, error_reason
from utils.files import write_atomically

SEGMENT_FRAMES = 512  # which a stopped job loses at most
JOB = "job.json"
LOCK = ".lock"  # held while a run is at work, and let go of by the system when that is killed
OURS = re.compile(rf"\d+\.mp4|joined\.\w+|{JOB}|\{LOCK}|\..*partial.*")  # names of files in a folder of pieces


def file_fingerprint(path: Path, flag: str) -> str:
    """A file by its name, size and time of change, "speaker.mp4, 1234 bytes, 2026-11-23 06:00:00" (UTC).

    Raises UserError, naming `flag`, if there is none.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{flag}: cannot be read: {path}: {error_reason(error)}") from None
    changed = datetime.fromtimestamp(int(found.st_mtime), UTC)
    return f"{path.name}, {found.st_size} bytes, {changed:%Y-%m-%d %H:%M:%S}"


def segments_folder(output: Path) -> Path:
    """Where the pieces of an output are kept."""
    return output.with_name(f"{output.name}.pieces")


class SegmentedWriter:
    """Writes a video as VideoWriter does, and keeps what there is of it when it is stopped, by whatever.

    Use as a context manager and write the frames from number `done` on. The folder "NAME.pieces" beside the output
    holds job.json, a lock, and 0000.mp4, 0001.mp4, … of PIECE_FRAMES frames each, which have these names only when
    they are whole. Left normally, the rest becomes a shorter piece, all are joined with the sound into the output,
    and the folder is removed. Left by an exception, the whole pieces stay. A shorter piece that is found can only
    be the last of a job that was stopped while it joined: it is written again, as are pieces that cannot be read
    and those after them.

    Attributes:
        done: frames in the whole pieces that earlier runs left.

    Args:
        output, width, height, fps, crf, sounds, pixel_aspect: as of VideoWriter.
        job: what the frames depend on, by its flag: inputs (`described`) and options. It must be the same in
            every run.

    Raises:
        UserError: the folder belongs to another job, another run is at work in it, or it cannot be written; or one
            of `sounds` cannot be used.
    """

    def __init__(
        self,
        output: Path,
        job: dict[str, str],
        width: int,
        height: int,
        fps: Fraction | int,
        crf: int = 16,
        audio_paths: Sequence[Path] = (),
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        check_audio_tracks(audio_paths)  # not only after hours
        self.output = output
        self.audio_paths = audio_paths
        self.folder = segments_folder(output)
        self._settings = {"width": width, "height": height, "fps": fps, "crf": crf, "pixel_aspect": pixel_aspect}
        self._writer: VideoWriter | None = None
        # another PyAV brings another x264, whose pieces may not fit
        made_by = {**self._settings, "frames in a piece": SEGMENT_FRAMES, "PyAV": av.__version__}
        self._lock = self._locked()
        try:
            self._claim(job | {key: str(value) for key, value in made_by.items()})
            self._pieces = self._whole_pieces()
            self.done = len(self._pieces) * SEGMENT_FRAMES
            with _output_errors(self.folder):
                for path in self.folder.iterdir():  # what writers left that were killed, and what is not whole
                    if path not in self._pieces and path.name not in (JOB, LOCK):
                        path.unlink()
        except BaseException:
            self._lock.release()
            raise

    def _locked(self) -> FileLock:
        """The folder for this run alone, made if need be."""
        with _output_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            if strange := [path.name for path in self.folder.iterdir() if not OURS.fullmatch(path.name)]:
                raise UserError(
                    f"expected {self.folder} to be of an earlier run, found {strange[0]} in it; move it"
                )
            lock = FileLock(self.folder / LOCK)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                raise UserError(f"another run is at work in {self.folder}; wait for it, or stop it") from None
        return lock

    def _claim(self, job: dict[str, str]) -> None:
        """Make the folder this job's, or see that it is."""
        path = self.folder / JOB
        if path.exists():
            _check_same_job(path, job)
            return
        with _output_errors(self.folder):
            for piece in self.folder.glob("*.mp4"):  # nobody knows of what job
                piece.unlink()
            write_atomically(path, lambda file: file.write(json.dumps(job, indent=1).encode()))

    def _whole_pieces(self) -> list[Path]:
        """Those from the first on that have all their frames."""
        whole = []
        while (path := self._piece(len(whole))).exists():
            try:
                with open_segment(path) as stream:
                    count = sum(1 for _ in frame_packets(stream))
            except UserError as error:
                print(f"warning: --resume: from this piece on all is made again: {error}", file=sys.stderr)
                break
            if count != SEGMENT_FRAMES:
                break
            whole.append(path)
        return whole

    def _piece(self, number: int) -> Path:
        return self.folder / f"{number:04}.mp4"

    def write(self, frame: np.ndarray) -> None:
        """Append one (H, W, 3) uint8 RGB frame; the first is frame `done` of the video."""
        with _output_errors(self.folder):
            if self._writer is None:
                self._writer = VideoWriter(self._piece(len(self._pieces)), **self._settings)
            self._writer.write(frame)
            if self._writer.num_frames == SEGMENT_FRAMES:
                self._finish_piece()

    def _finish_piece(self) -> None:
        writer, self._writer = self._writer, None
        with writer:
            pass  # to leave it is to finish its file
        self._pieces.append(writer.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with _output_errors(self.folder):
                    if self._writer:
                        self._finish_piece()
                    joined = self.folder / f"joined{self.output.suffix}"
                    concatenate_videos(self._pieces, joined, self.audio_paths)
                    joined.replace(self.output)
                    self._pieces.clear()
            elif self._writer:
                self._writer.__exit__(kind, value, trace)
        finally:
            try:
                if not self._pieces:
                    self._remove_folder()
            finally:
                self._lock.release()

    def _remove_folder(self) -> None:
        """As far as that goes. The lock last: who comes now makes another one, in a folder that then stays."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            (self.folder / LOCK).unlink()
            self.folder.rmdir()


def _check_same_job(path: Path, job: dict[str, str]) -> None:
    """Raise UserError unless the file tells of this job."""
    try:
        before = json.loads(path.read_bytes())
        differing = [
            f"{key} was {before.get(key, 'not given')} and is {job.get(key, 'not given')}"
            for key in dict.fromkeys([*job, *before])
            if before.get(key) != job.get(key)
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        differing = [f"{path.name} cannot be read"]
    if differing:
        raise UserError(
            f"--resume: {path.parent} is of another job: {'; '.join(differing)}. Give the arguments and files of "
            "then, or delete the folder to begin anew"
        )


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Around what writes into the folder: what fails is told of --output."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--output: {error}") from None
    except OSError as error:
        raise UserError(f"--output: cannot write into {folder}: {error_reason(error)}") from None
