"""The one place that reads video (PyAV: its wheels carry ffmpeg, nothing else need be installed).

Frames are (H, W, 3) uint8 RGB arrays and are streamed: nothing here holds a whole video in memory.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.stream import Disposition

from data_processing.errors import Damaged, UserError, reason_of
from data_processing.limits import HOW_TO_LIFT, limits
from data_processing.picture import deinterlaced, describe_conversions, is_turned, to_rgb

FPS = 25  # frames per second of everything the networks see
STANDARD_RATES = [
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60")
]
MAX_FPS = Fraction(60)  # of videos dubbed: slow motion is shown slower anyway
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


def open_media(path: Path) -> av.container.InputContainer:
    """`av.open` for reading, of any file name and with titles in any encoding."""
    # a relative "take:1.mp4" would be taken for an address
    return av.open(str(path.absolute()), metadata_errors="replace")


def _open(path: Path, flag: str) -> av.container.InputContainer:
    check_readable(path, flag)
    try:
        container = open_media(path)
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{flag}: expected a video, found something else: {path} ({reason_of(error)})") from None
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


def probe(path: Path, flag: str = "--video") -> VideoInfo:
    """Decode the first frame of a video and describe it.

    Raises:
        UserError: missing, empty, not a video, over `limits.side` pixels wide or high, or nothing can be decoded.
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
        UserError: the file cannot be opened, holds no decodable frame, or has pictures of over `limits.side`
            pixels on a side.
        Damaged: it can be read no further, or has more than `limits.gap_s` between two pictures. (The last is held
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
        end = time + min(duration, limits.gap_s)
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

    Raises UserError at a picture of over `limits.side` pixels, Damaged at one over `limits.gap_s` after the last.
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
            where = f"{last or 0:.2f} s of {container.name}"
            raise Damaged(f"{flag}: reading stopped at {where}: {reason_of(error)}") from None
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
            if last is not None and time - last > limits.gap_s:
                raise Damaged(
                    f"{flag}: expected at most {limits.gap_s:g} s between two pictures, found {time - last:.0f} s "
                    f"after {last:.2f} s of {container.name} ({HOW_TO_LIFT})"
                )
            last = time
            yield time, frame


def _check_size(picture: av.VideoFrame | av.VideoCodecContext, container, flag: str) -> None:
    if max(picture.width, picture.height) > limits.side:
        raise UserError(
            f"{flag}: expected pictures of at most {limits.side:g} pixels on a side, found {picture.width} x "
            f"{picture.height} in {container.name} ({HOW_TO_LIFT})"
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
