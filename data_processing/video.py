"""The one place that reads and writes video (PyAV: its wheels carry ffmpeg, nothing else need be installed).

Frames are (H, W, 3) uint8 RGB arrays and are streamed: nothing here holds a whole video in memory.
"""

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from data_processing.errors import Damaged, UserError
from data_processing.picture import EXACT, deinterlaced, describe_conversions, is_turned, to_rgb

FPS = 25  # frames per second of everything the networks see
STANDARD_RATES = [
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60")
]
MAX_FPS = Fraction(60)  # of videos dubbed: slow motion is shown slower anyway
MAX_SIDE = 8192  # pixels of a picture; a damaged header may ask for gigabytes
SAMPLE_RATES = range(1000, 1_000_001)  # of sound; a damaged header may make days of a second
MAX_GAP_S = 60  # between two frames; a damaged time stamp may ask for one picture a million times
VIDEO_SUFFIXES = {
    ".mp4",
    ".mov",
    ".mkv",
    ".avi",
    ".webm",
    ".mpg",
    ".mpeg",
    ".m4v",
    ".wmv",
    ".flv",
    ".ts",
    ".3gp",
}
OUTPUT_SUFFIXES = {".mp4", ".mov", ".mkv"}
COPIED_AUDIO = {"aac", "ac3", "eac3"}  # what every player of mp4, mov and mkv understands
AAC_BIT_RATE = 192_000
AAC_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # ffmpeg's own leave transparency out


@dataclass(frozen=True)
class VideoInfo:
    """What a viewer sees: size after rotation, width of a pixel over its height, frames per second and length (both
    an estimate; of a variable frame rate the next standard one), and what reading changes."""

    width: int
    height: int
    pixel_aspect: Fraction
    fps: Fraction
    duration_s: float
    notes: tuple[str, ...] = ()


def check_readable(path: Path, flag: str) -> None:
    """Raise UserError unless `path` is a non-empty file; `flag` names where the path came from."""
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except IsADirectoryError:
        raise UserError(f"{flag}: expected a file, found a directory: {path}") from None
    except FileNotFoundError:
        raise UserError(f"{flag}: no such file: {path}") from None
    except OSError as error:
        raise UserError(f"{flag}: cannot be read: {path}: {error.strerror}") from None
    if empty:
        raise UserError(f"{flag}: the file is empty (0 bytes): {path}")


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


def open_media(path: Path) -> av.container.InputContainer:
    """`av.open` for reading, of any file name and with titles in any encoding."""
    # a relative "take:1.mp4" would be taken for an address
    return av.open(str(path.absolute()), metadata_errors="replace")


def _open(path: Path, flag: str) -> av.container.InputContainer:
    check_readable(path, flag)
    try:
        container = open_media(path)
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{flag}: expected a video, found something else: {path} ({_words(error)})") from None
    if not container.streams.video:
        container.close()
        raise UserError(f"{flag}: expected a video, found no picture in {path}")
    _picture(container).thread_type = "AUTO"
    return container


def main_track(tracks: Sequence[av.stream.Stream]) -> av.stream.Stream:
    """The track a player would choose: the one marked default, else the first."""
    return next((track for track in tracks if track.disposition & Disposition.default), tracks[0])


def _picture(container: av.container.InputContainer) -> av.VideoStream:
    """The main track that shows moving pictures; a cover only where there is nothing else."""
    videos = container.streams.video
    return main_track([v for v in videos if not v.disposition & Disposition.attached_pic] or videos)


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def probe(path: Path, flag: str = "--video") -> VideoInfo:
    """Decode the first frame of a video and describe it.

    Raises:
        UserError: missing, empty, not a video, over MAX_SIDE pixels on a side, or nothing in it can be decoded.
    """
    with _open(path, flag) as container:
        stream = _picture(container)
        _, first = next(_timed_frames(container, stream, flag), (0.0, None))
        if first is None:
            raise UserError(f"{flag}: no frame of {path} can be decoded")
        turned = is_turned(first)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = (container.duration or 0) / av.time_base
        return VideoInfo(
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            pixel_aspect=1 / aspect if turned else aspect,
            fps=_frame_rate(stream),
            duration_s=duration,
            notes=tuple(describe_conversions(first)),
        )


def _frame_rate(stream: av.video.stream.VideoStream) -> Fraction:
    """Frames per second of a stream, between 1 and MAX_FPS; 25 where nobody knows."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if not average or not guessed:
        rate = average or guessed or Fraction(FPS)
    else:
        nearest = min(STANDARD_RATES, key=lambda standard: abs(standard / average - 1))
        if abs(nearest / average - 1) < 0.002:  # a whole rate told inexactly
            rate = nearest
        elif abs(guessed / average - 1) < 0.02:
            rate = average.limit_denominator(1001)
        else:
            densest = max(average, guessed) if guessed <= MAX_FPS else average
            rate = next((standard for standard in STANDARD_RATES if standard >= densest), MAX_FPS)
    return min(max(Fraction(rate), Fraction(1)), MAX_FPS)


def first_frame_time(path: Path) -> float | None:
    """Seconds at which the first picture of a media file that can be decoded is shown; None without a picture.

    Containers may start anywhere, and this is time 0 of everything here, sound and picture. The cover of a music
    file is a video stream too, but shows no time.
    """
    try:
        with open_media(path) as container:
            videos = [v for v in container.streams.video if not v.disposition & Disposition.attached_pic]
            return next((frame.time for frame in container.decode(main_track(videos))), None) if videos else None
    except (av.error.FFmpegError, OSError):
        return None


def read_frames(
    path: Path,
    start: int = 0,
    stop: int | None = None,
    flag: str = "--video",
    fps: Fraction | int = FPS,
) -> Iterator[np.ndarray]:
    """Frames `start` to `stop` (exclusive) of a video as seen at `fps` frames per second.

    Output frame k is the source frame nearest in time to k / fps s after the first frame, so 24, 29.97, 50 and
    variable frame rates all keep time with the sound. They are upright, whole and SDR (picture.py says how).

    Args:
        path: any video file.
        start: first frame wanted; reached by seeking where the file allows it.
        stop: frame to stop before; None reads to the end.
        flag: where the path came from, for error messages.
        fps: 25, as all networks see videos, or the video's own (VideoInfo.fps).

    Yields:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: the file cannot be opened, holds no decodable frame, or has pictures of over MAX_SIDE pixels on
            a side.
        Damaged: it can be read no further, or has more than MAX_GAP_S between two pictures. (The last one is held
            no longer than that.)
    """
    rate = float(fps)
    with _open(path, flag) as container:
        stream = _picture(container)
        frames = deinterlaced(_timed_frames(container, stream, flag))
        first = next(frames, None)
        if first is None:
            raise UserError(f"{flag}: no frame of {path} can be decoded")
        origin = first[0]
        if start > 0:
            landed = _seek(container, stream, flag, origin + start / rate, 1 / rate)
            if landed is None:  # some containers cannot seek: read from the beginning
                yield from itertools.islice(read_frames(path, 0, stop, flag, fps), start, None)
                return
            first, frames = landed
        size = to_rgb(first[1]).shape[1::-1]  # streams may change theirs; landmarks and output need one
        index, (time, frame) = start, first
        for next_time, next_frame in frames:
            # `frame` is the nearest one for every output time before the middle between the two
            middle = (time + next_time) / 2
            if origin + index / rate < middle:
                picture = _sized(to_rgb(frame), size)
                while origin + index / rate < middle:
                    if stop is not None and index >= stop:
                        return
                    yield picture
                    index += 1
            time, frame = next_time, next_frame
            if stop is not None and index >= stop:  # before what comes after is looked at: it may be damaged
                return
        # the last frame stays until its own duration is over
        duration = float(frame.duration * stream.time_base) if frame.duration else 1 / rate
        end = time + min(duration, MAX_GAP_S)
        picture = _sized(to_rgb(frame), size)
        while origin + index / rate < end - 0.5 / rate or index == 0:
            if stop is not None and index >= stop:
                return
            yield picture
            index += 1


def _sized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    same = picture.shape[1::-1] == size
    return picture if same else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def read_frames_backward(
    path: Path, num_frames: int, chunk: int = 32, flag: str = "--video", fps: Fraction | int = FPS
) -> Iterator[np.ndarray]:
    """The first `num_frames` frames of `read_frames`, last first, holding at most `chunk` of them in memory."""
    for stop in range(num_frames, 0, -chunk):
        yield from reversed(list(read_frames(path, max(0, stop - chunk), stop, flag, fps)))


def _timed_frames(container, stream, flag: str, after_seek: bool = False) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with strictly growing times in seconds; damaged packets are stepped over.

    Raises UserError at a picture of more than MAX_SIDE pixels on a side or MAX_GAP_S after the one before.
    """
    last = None
    period = 1 / max(1.0, float(stream.average_rate or stream.guessed_rate or FPS))
    only_dts = container.format.name == "avi"  # which stores no presentation times
    decode = av.Packet.decode
    if stream.metadata.get("alpha_mode") == "1" and stream.name in ALPHA_DECODERS:
        decode = av.CodecContext.create(ALPHA_DECODERS[stream.name], "r").decode
    packets = container.demux(stream)
    if stream.codec_context is not None:
        _check_size(stream.codec_context, container, flag)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.EOFError, av.error.InvalidDataError):
            return
        except av.error.FFmpegError as error:
            raise Damaged(
                f"{flag}: reading stopped at {last or 0:.2f} s of {container.name}: {_words(error)}"
            ) from None
        try:
            decoded = decode(packet)
        except av.error.FFmpegError:
            continue
        for frame in decoded:
            _check_size(frame, container, flag)
            stamp = frame.dts if only_dts and frame.dts is not None else frame.pts
            if stamp is None and last is None and after_seek:
                continue  # nobody can say which frame this is
            time = float(stamp * stream.time_base) if stamp is not None else None
            if time is None or (last is not None and time <= last):
                time = 0.0 if last is None else last + period
            if last is not None and time - last > MAX_GAP_S:
                raise Damaged(
                    f"{flag}: expected at most {MAX_GAP_S} s between two pictures, found {time - last:.0f} s "
                    f"after {last:.2f} s of {container.name}"
                )
            last = time
            yield time, frame


def _check_size(picture: av.VideoFrame | av.VideoCodecContext, container, flag: str) -> None:
    if max(picture.width, picture.height) > MAX_SIDE:
        raise UserError(
            f"{flag}: expected pictures of at most {MAX_SIDE} pixels on a side, found "
            f"{picture.width} x {picture.height} in {container.name}"
        )


def _seek(container, stream, flag: str, time: float, period: float):
    """The frame shown at `time` and the iterator of those after it, by seeking to the key frame before it."""
    try:
        # two frames early: an interlaced one needs the one before it
        container.seek(int((time - 2 * period) / stream.time_base), stream=stream, backward=True)
    except av.error.FFmpegError:
        return None
    frames = deinterlaced(_timed_frames(container, stream, flag, after_seek=True), after_seek=True)
    current = next(frames, None)
    if current is None or current[0] > time - 0.5 * period:
        return None
    for following in frames:
        if (current[0] + following[0]) / 2 > time:
            return current, itertools.chain([following], frames)
        current = following
    return current, iter(())


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
            raise UserError(f"{path} cannot be written: {_words(error)}") from None
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
            self._sound = _sound_packets(audio_path, self._container)
            try:
                self._pending = next(self._sound, None)  # adds the stream before the header is written
            except (av.error.FFmpegError, OSError) as error:
                self._discard()
                raise UserError(f"the sound of {audio_path} cannot be used: {_words(error)}") from None
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
            raise UserError(f"writing {self.path} stopped at frame {self.num_frames}: {_words(error)}") from None

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
            reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else _words(error)
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


def _sound_packets(path: Path, output: av.container.OutputContainer) -> Iterator[av.Packet]:
    """Packets for `output` with the main audio track of `path`, time 0 being the first video frame's, if any."""
    with open_media(path) as source:
        stream = main_track(source.streams.audio) if source.streams.audio else None
        if stream is None or stream.codec_context is None:
            raise UserError(f"expected a sound track that can be decoded, found none in {path}")
        origin = first_frame_time(path)
        if origin is None:
            origin = float((stream.start_time or 0) * stream.time_base)
        frames = _up_to_damage(source.decode(stream))
        first = next(frames, None)
        if first is None:
            return
        if stream.codec_context.name in COPIED_AUDIO:
            yield from _copied_packets(path, origin, output)
            return
        rate = min((rate for rate in AAC_SAMPLE_RATES if rate >= stream.rate), default=AAC_SAMPLE_RATES[-1])
        target = output.add_stream("aac", rate=rate, layout="mono" if stream.channels == 1 else "stereo")
        target.bit_rate = AAC_BIT_RATE
        # of the next sample, in samples after time 0
        position = 0 if first.time is None else round((first.time - origin) * rate)
        parts = resampled(itertools.chain([first], frames), "fltp", target.layout.name, rate)
        for part in _up_to_damage(parts):
            part.pts, part.time_base = position, Fraction(1, rate)
            position += part.samples
            if position > 0:
                yield from target.encode(part)
        yield from target.encode(None)


def _copied_packets(path: Path, origin: float, output: av.container.OutputContainer) -> Iterator[av.Packet]:
    """The packets of the main audio track of `path` as they are, time 0 being `origin` seconds."""
    with open_media(path) as source:
        stream = main_track(source.streams.audio)
        target = output.add_stream_from_template(stream)
        shift = round(origin / stream.time_base)
        for packet in _up_to_damage(source.demux(stream)):
            if packet.dts is None or packet.pts is None or packet.pts - shift < 0:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = target
            yield packet


def resampled(frames: Iterator[av.AudioFrame], format: str, layout: str, rate: int) -> Iterator[av.AudioFrame]:
    """The same sound in one format, whatever that of the frames changes to on the way.

    Raises av.error.InvalidDataError at a frame of a rate that is none of SAMPLE_RATES.
    """
    source, resampler = None, None
    for frame in frames:
        if frame.sample_rate not in SAMPLE_RATES:
            raise av.error.InvalidDataError(errno.EINVAL, f"{frame.sample_rate} samples per second")
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != found:  # a resampler takes one format only
            yield from resampler.resample(None) if resampler else ()
            source, resampler = found, av.AudioResampler(format, layout, rate)
        yield from resampler.resample(frame)
    yield from resampler.resample(None) if resampler else ()


def _up_to_damage(items: Iterator) -> Iterator:
    """Packets or frames up to the end or to where reading fails (`load_audio` warns of that)."""
    with contextlib.suppress(av.error.FFmpegError):
        yield from items
