"""The one place that writes video. Frames are (H, W, 3) uint8 RGB arrays and go out as they come; files appear
under their names only when they are whole."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from data_processing.errors import UserError, reason_of
from data_processing.picture import EXACT
from data_processing.soundtrack import sound_packets
from data_processing.video import FPS, open_media

OUTPUT_SUFFIXES = {".mp4", ".mov", ".mkv"}
PRESET = "veryfast"  # of x264: half the time of medium at the same quality; on processors the generator needs it
DECODED_AHEAD = 2  # frames, before they are shown: what the preset's B-frames of B-frames need


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


class _Output:
    """A file that is being written under a temporary name, with a sound that goes in along with the picture and
    ends with it. Left normally it gets its name, left by an exception it is gone."""

    def __init__(self, path: Path, fps: Fraction) -> None:
        self.path = path
        self.partial_path = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self.fps = fps
        self.num_frames = 0
        self._sound = self._pending = None
        try:
            self._container = av.open(str(self.partial_path.absolute()), "w")
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{path} cannot be written: {reason_of(error)}") from None

    def _add_sound(self, sounds: Sequence[Path]) -> None:
        if not sounds:
            return
        names = ", ".join(map(str, sounds))
        self._sound = sound_packets(sounds, self._container)
        try:
            self._pending = next(self._sound, None)  # adds the stream before the header is written
        except (av.error.FFmpegError, OSError) as error:
            self._discard()
            raise UserError(f"the sound of {names} cannot be used: {reason_of(error)}") from None
        except UserError:
            self._discard()
            raise
        if self._pending is None:
            self._discard()
            raise UserError(f"the sound of {names} cannot be used: none of it can be read")

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Around what stores a frame: the sound that goes with it follows, and what fails is told."""
        self.num_frames += 1
        try:
            yield
            self._mux_sound()
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"writing {self.path} stopped at frame {self.num_frames}: {reason_of(error)}") from None

    def _mux_sound(self) -> None:
        until = self.num_frames / self.fps
        while self._pending is not None and self._pending.pts * self._pending.time_base < until:
            with contextlib.suppress(av.error.InvalidDataError, av.error.ArgumentError):  # a damaged packet
                self._container.mux(self._pending)
            self._pending = next(self._sound, None)

    def _flush(self) -> None:
        """Store what is left of the picture."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                self._mux_sound()
                self._container.close()
                with self.partial_path.open("rb") as file:
                    os.fsync(file.fileno())  # whole after a power cut too
                self.partial_path.replace(self.path)
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{self.path} could not be finished: {reason_of(error)}") from None
        finally:
            self._discard()

    def _discard(self) -> None:
        """Close what is open and leave no partial file; an earlier error is the one to tell."""
        if self._sound:
            self._sound.close()
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._container.close()
        self.partial_path.unlink(missing_ok=True)


class VideoWriter(_Output):
    """Writes H.264 with BT.709 colour tags and a sound track; the file appears under its name only when whole.

    Use as a context manager. The sound ends with the picture. That of one file is copied where mp4 players
    understand the codec, encoded as AAC at 192 kb/s otherwise; those of several are mixed (soundtrack.py says how).

    Args:
        path: output, .mp4, .mov or .mkv. Odd sizes are padded by one replicated pixel (4:2:0 needs even ones).
        width, height: of the frames given to `write`.
        fps: frame rate.
        crf: x264 quality, 0 (lossless) to 51; 16 is visually lossless.
        sounds: files whose default audio tracks, else first, become the sound; any that ffmpeg reads.
        pixel_aspect: width of a pixel over its height, as players are to show it.

    Raises:
        UserError: the output cannot be written, or one of `sounds` holds no sound that can be read.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: Fraction | int = FPS,
        crf: int = 16,
        sounds: Sequence[Path] = (),
        pixel_aspect: Fraction = Fraction(1),
    ):
        super().__init__(path, Fraction(fps))
        self.size = (height, width)
        self._video = self._container.add_stream("libx264", rate=self.fps)
        self._video.width, self._video.height = width + width % 2, height + height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.options = {"crf": str(crf), "preset": PRESET}
        context = self._video.codec_context
        context.sample_aspect_ratio = pixel_aspect
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._add_sound(sounds)

    def write(self, frame: np.ndarray) -> None:
        """Append one (H, W, 3) uint8 RGB frame."""
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"expected (H, W, 3) = {(*self.size, 3)} uint8, found {frame.shape} {frame.dtype}")
        if frame.shape[0] % 2 or frame.shape[1] % 2:  # it copies in any case
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
        with self._storing():
            self._container.mux(self._video.encode(picture))

    def _flush(self) -> None:
        self._container.mux(self._video.encode(None))


def join(pieces: Sequence[Path], output: Path, sounds: Sequence[Path] = ()) -> None:
    """Write videos one after the other into one, their pictures as they are: nothing is encoded again.

    Args:
        pieces: files of VideoWriter, all of one size, frame rate and quality. The same may come again.
        output, sounds: as of VideoWriter.

    Raises:
        UserError: there is no piece, or one cannot be read or differs from the first; the output cannot be
            written, or one of `sounds` holds no sound that can be read.
    """
    if not pieces:
        raise UserError(f"{output} could not be finished: there is no frame")
    with opened_piece(pieces[0]) as like:
        fps = like.average_rate.limit_denominator(1001)  # Matroska tells it in nanoseconds
        with _Output(output, fps) as file:
            video = file._container.add_stream_from_template(like, time_base=1 / fps)
            video.codec_context.framerate = fps
            file._add_sound(sounds)
            for piece in pieces:
                start = file.num_frames
                with opened_piece(piece) as stream:
                    # the headers of H.264, where size, frame rate, pixel aspect and crf show too
                    if stream.codec_context.extradata != like.codec_context.extradata:
                        raise UserError(f"expected pieces of the same kind, found {pieces[0]} and {piece}")
                    for packet in frame_packets(stream):
                        packet.pts = start + round(packet.pts * packet.time_base * fps)
                        packet.dts = file.num_frames - DECODED_AHEAD
                        packet.time_base, packet.duration, packet.stream = 1 / fps, 1, video
                        with file._storing():
                            file._container.mux(packet)


@contextlib.contextmanager
def opened_piece(path: Path) -> Iterator[av.VideoStream]:
    """The picture of a file of VideoWriter.

    Raises UserError if it cannot be opened, or if reading it fails in the body.
    """
    try:
        with open_media(path) as container:
            if not container.streams.video:
                raise UserError(f"expected a video, found no picture in {path}")
            yield container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from None


def frame_packets(stream: av.VideoStream) -> Iterator[av.Packet]:
    """Its packets, one a frame, in the order of decoding."""
    return (packet for packet in stream.container.demux(stream) if packet.size)
