"""The one place that writes video. Frames are (H, W, 3) uint8 RGB arrays and go out as they come."""

import contextlib
import errno
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from data_processing.errors import UserError, reason_of
from data_processing.picture import EXACT
from data_processing.soundtrack import sound_packets
from data_processing.video import FPS

OUTPUT_SUFFIXES = {".mp4", ".mov", ".mkv"}


def check_writable(path: Path, flag: str) -> None:
    """Raise UserError unless a video can be written to `path`: a known suffix in a writable folder."""
    if path.is_dir():
        raise UserError(f"{flag}: expected a file name, found a directory: {path}")
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{flag}: expected a name ending in .mp4, .mov or .mkv, found {path}")
    if not path.parent.is_dir():
        raise UserError(f"{flag}: no such folder: {path.parent}")
    probe = path.with_name(f".{path.name}.{os.getpid()}.write-test")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{flag}: cannot write into {path.parent}: {error.strerror}") from None


class VideoWriter:
    """Writes H.264 with BT.709 colour tags and a sound track; the file appears under its name only when whole.

    Use as a context manager. The sound comes from `audio_path` (any media file): its packets are copied where
    mp4 players understand the codec, encoded as AAC at 192 kb/s otherwise, and end with the picture.

    Args:
        path: output, .mp4, .mov or .mkv. Odd sizes are padded by one replicated pixel (4:2:0 needs even ones).
        width, height: of the frames given to `write`.
        fps: frame rate.
        crf: x264 quality, 0 (lossless) to 51; 16 is visually lossless.
        audio_path: file whose default audio track, else first, becomes the sound, or None.
        pixel_aspect: width of a pixel over its height, as players are to show it.

    Raises:
        UserError: the output cannot be written, or `audio_path` holds no sound that can be read.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: Fraction | int = FPS,
        crf: int = 16,
        audio_path: Path | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ):
        self.path = path
        self.partial_path = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self.size = (height, width)
        self.fps = Fraction(fps)
        self.num_frames = 0
        self._sound = None
        try:
            self._container = av.open(str(self.partial_path.absolute()), "w")
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{path} cannot be written: {reason_of(error)}") from None
        self._video = self._container.add_stream("libx264", rate=self.fps)
        self._video.width, self._video.height = width + width % 2, height + height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.options = {"crf": str(crf), "preset": "medium"}
        context = self._video.codec_context
        context.sample_aspect_ratio = pixel_aspect
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._pending = None
        if audio_path:
            self._sound = sound_packets(audio_path, self._container)
            try:
                self._pending = next(self._sound, None)  # adds the stream before the header is written
            except (av.error.FFmpegError, OSError) as error:
                self._discard()
                raise UserError(f"the sound of {audio_path} cannot be used: {reason_of(error)}") from None
            except UserError:
                self._discard()
                raise
            if self._pending is None:
                self._discard()
                raise UserError(f"the sound of {audio_path} cannot be used: none of it can be read")

    def write(self, frame: np.ndarray) -> None:
        """Append one (H, W, 3) uint8 RGB frame."""
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"expected (H, W, 3) = {(*self.size, 3)} uint8, found {frame.shape} {frame.dtype}")
        frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=EXACT,
        )
        picture.pts = self.num_frames
        picture.time_base = 1 / self.fps
        picture.colorspace = Colorspace.ITU709
        picture.color_range = ColorRange.MPEG
        self.num_frames += 1
        try:
            self._container.mux(self._video.encode(picture))
            self._mux_sound(until=self.num_frames / self.fps)
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"writing {self.path} stopped at frame {self.num_frames}: {reason_of(error)}") from None

    def _mux_sound(self, until: Fraction) -> None:
        while self._pending is not None and self._pending.pts * self._pending.time_base < until:
            with contextlib.suppress(av.error.InvalidDataError, av.error.ArgumentError):  # a damaged packet
                self._container.mux(self._pending)
            self._pending = next(self._sound, None)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._container.mux(self._video.encode(None))
                self._mux_sound(until=self.num_frames / self.fps)
                self._container.close()
                self.partial_path.replace(self.path)
        except (av.error.FFmpegError, OSError) as error:
            reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else reason_of(error)
            raise UserError(f"{self.path} could not be finished: {reason}") from None
        finally:
            self._discard()

    def _discard(self) -> None:
        """Close what is open and leave no partial file; an earlier error is the one to tell."""
        if self._sound:
            self._sound.close()
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._container.close()
        self.partial_path.unlink(missing_ok=True)
