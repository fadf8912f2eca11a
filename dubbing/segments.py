"""A video written in segments, so that an interrupted dub can be resumed (`--resume`)."""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from data_processing.media.frame import Frame, PlaneLayout
from data_processing.media.video_writer import VideoWriter, concatenate_videos, frame_packets, open_segment
from utils.errors import AudioError, FileError, MediaError, OutputError, ParameterError, UserError, error_reason
from utils.files import follow_link, short_name, write_atomically
from utils.limits import DEFAULT_LIMITS, Limits

SEGMENT_FRAMES = 512  # an interrupted dub loses fewer frames than this
JOB = "job.json"
LOCK = ".lock"  # held by the running process; the operating system releases it when the process dies
OWN_FILES = re.compile(rf"\d+\.mp4|joined\.\w+|{JOB}|\{LOCK}|\..*partial.*")  # names in a folder of segments
logger = logging.getLogger(__name__)


def file_fingerprint(path: Path) -> str:
    """Name, size and modification time (UTC) of a file: "speaker.mp4, 1234 bytes, 2026-11-23 06:00:00".

    Raises:
        FileError: the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error_reason(error)}") from None
    modified = datetime.fromtimestamp(int(status.st_mtime), UTC)
    return f"{path.name}, {status.st_size} bytes, {modified:%Y-%m-%d %H:%M:%S}"


def segments_folder(output: Path) -> Path:
    """The folder with the segments of an output, beside it, or beside the file that it points to.

    Raises:
        OutputError: the output is a symbolic link that points to itself.
    """
    try:
        output = follow_link(output)
    except OSError as error:
        raise OutputError(output, f"cannot be written: {error_reason(error)}") from None
    return output.with_name(f"{short_name(output.name, 240)}.segments")  # at most 255 bytes


class SegmentedWriter:
    """Writes a video like VideoWriter, and keeps the completed part when it is interrupted in any way.

    Use as a context manager and write the frames from number `num_done` on. The folder OUTPUT.segments holds
    job.json, a lock, and 0000.mp4, 0001.mp4, … of SEGMENT_FRAMES frames each, which have these names only when they
    are complete. When the context ends normally, the remaining frames become a shorter segment, all segments are
    concatenated into the output with the audio, and the folder is removed. When it ends by an exception, complete
    segments are kept. A shorter segment can only be left by a process that was killed while it concatenated: it is
    written again, as are unreadable segments and those after them.

    Args:
        output, width, height, fps, crf, audio_paths, limits, pixel_aspect, layout, codec, metadata, finish: as for
            VideoWriter.
        job: everything that the frames depend on, by name: inputs (`file_fingerprint`) and options. It must be the
            same in every run.

    Attributes:
        num_done: frames in the complete segments of earlier runs.

    Raises:
        OutputError: another process writes to the folder, or the folder cannot be written or holds other files.
        ParameterError: the folder belongs to another job.
        AudioError: an audio track cannot be read.
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
        limits: Limits = DEFAULT_LIMITS,
        pixel_aspect: Fraction = Fraction(1),
        layout: PlaneLayout | None = None,
        codec: str = "h264",
        metadata: Mapping[str, str] | None = None,
        finish: Callable[[Path], None] | None = None,
    ) -> None:
        check_audio_tracks(audio_paths, limits)  # now, not after hours
        self.output = output
        self._joining = {"audio_paths": audio_paths, "limits": limits, "metadata": metadata, "finish": finish}
        self.folder = segments_folder(output)
        self._options = {"width": width, "height": height, "fps": fps, "crf": crf, "pixel_aspect": pixel_aspect}
        self._options |= {"layout": layout, "codec": codec}
        self._writer: VideoWriter | None = None
        # another PyAV has another x264, whose segments may not fit
        made_by = {**self._options, "frames per segment": SEGMENT_FRAMES, "PyAV": av.__version__}
        self._lock = self._acquire_lock()
        try:
            self._check_or_write_job(job | {key: str(value) for key, value in made_by.items()})
            self._segments = self._complete_segments()
            self.num_done = len(self._segments) * SEGMENT_FRAMES
            with _output_errors(self.folder):
                for path in self.folder.iterdir():  # incomplete files of killed processes
                    if path not in self._segments and path.name not in (JOB, LOCK):
                        path.unlink()
        except BaseException:
            self._lock.release()
            raise

    def _acquire_lock(self) -> FileLock:
        """Create the folder if necessary and lock it for this process."""
        with _output_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            if others := [path.name for path in self.folder.iterdir() if not OWN_FILES.fullmatch(path.name)]:
                raise OutputError(self.folder, f"holds files that are no segments ({others[0]}); move the folder")
            lock = FileLock(self.folder / LOCK)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                reason = "another process is writing to it; wait for that process or stop it"
                raise OutputError(self.folder, reason) from None
        return lock

    def _check_or_write_job(self, job: dict[str, str]) -> None:
        path = self.folder / JOB
        if path.exists():
            _check_same_job(path, job)
            return
        with _output_errors(self.folder):
            for segment in self.folder.glob("*.mp4"):  # of an unknown job
                segment.unlink()
            write_atomically(path, lambda file: file.write(json.dumps(job, indent=1).encode()))

    def _complete_segments(self) -> list[Path]:
        """The segments from the first on that have all their frames."""
        complete = []
        while (path := self._segment_path(len(complete))).exists():
            try:
                with open_segment(path) as stream:
                    count = sum(1 for _ in frame_packets(stream))
            except MediaError as error:
                message = "%s; this segment and those after it are written again"
                logger.warning(message, error, extra={"parameter": "resume"})
                break
            if count != SEGMENT_FRAMES:
                break
            complete.append(path)
        return complete

    def _segment_path(self, number: int) -> Path:
        return self.folder / f"{number:04}.mp4"

    def write(self, frame: Frame | np.ndarray) -> None:
        """Append one frame, or (H, W, 3) uint8 RGB; the first call appends frame `num_done` of the video."""
        with _output_errors(self.folder):
            if self._writer is None:
                self._writer = VideoWriter(self._segment_path(len(self._segments)), **self._options)
            self._writer.write(frame)
            if self._writer.num_frames == SEGMENT_FRAMES:
                self._complete_segment()

    def _complete_segment(self) -> None:
        writer, self._writer = self._writer, None
        with writer:
            pass  # leaving the context completes the file
        self._segments.append(writer.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with _output_errors(self.folder):
                    if self._writer:
                        self._complete_segment()
                    joined = self.folder / f"joined{self.output.suffix}"
                    concatenate_videos(self._segments, joined, **self._joining)
                    joined.replace(follow_link(self.output))
                    self._segments.clear()
            elif self._writer:
                self._writer.__exit__(kind, value, trace)
        finally:
            try:
                if not self._segments:
                    self._remove_folder()
            finally:
                self._lock.release()

    def _remove_folder(self) -> None:
        """Remove the folder if possible; the lock last, so that no other process enters a folder half removed."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            (self.folder / LOCK).unlink()
            self.folder.rmdir()


def _check_same_job(path: Path, job: dict[str, str]) -> None:
    try:
        before = json.loads(path.read_bytes())
        differences = [
            f"{key} was {before.get(key, 'not given')} and is {job.get(key, 'not given')}"
            for key in dict.fromkeys([*job, *before])
            if before.get(key) != job.get(key)
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        differences = [f"{path.name} cannot be read"]
    if differences:
        raise ParameterError(
            "resume",
            f"{path.parent} belongs to another job: {'; '.join(differences)}. Use the same arguments and files, or "
            "delete the folder to start again",
        )


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Attributes errors of the body, other than those of audio tracks and parameters, to the parameter `output`."""
    try:
        yield
    except (AudioError, ParameterError):
        raise
    except UserError as error:
        error.parameter = "output"
        raise
    except OSError as error:
        failure = OutputError(folder, f"cannot be written: {error_reason(error)}")
        failure.parameter = "output"
        raise failure from None
