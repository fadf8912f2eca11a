"""The one place that reads video, with PyAV, whose wheels include FFmpeg.

`read_video` returns frames with the samples that were decoded (frame.py), `read_frames` (H, W, 3) uint8 RGB arrays.
Both are streamed: no function here holds a whole video in memory.
"""

import itertools
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import cv2
import numpy as np
from av.stream import Disposition

from data_processing.media.frame import Frame, FrameConverter, PlaneLayout, RgbFrame
from data_processing.media.frame_conversion import deinterlace, describe_conversions, is_transposed, to_rgb
from data_processing.media.heif import TileGrid, assemble, read_tile_grid
from utils.errors import GapError, LimitError, MediaError, TruncatedMediaError, error_reason
from utils.limits import DEFAULT_LIMITS, NO_LIMITS, Limits

FPS = 25  # frames per second of all network input
STANDARD_RATES = [
    Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30", "48", "50", "60000/1001", "60")
]
MAX_FPS = Fraction(60)  # of dubbed videos
MIN_FPS = Fraction(12)  # below, the eye sees single images, and so it would those of the lips
MANY_PIXELS = 4096 * 2304  # of a frame: level 5.2 of H.264, up to which most devices play
# Suffixes of the videos in a folder, in lower case. A file that is given by name may have any.
VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".qt", ".mkv", ".mk3d", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv", ".f4v",
    ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".m2p", ".vob", ".evo", ".ts", ".mts", ".m2ts", ".m2t",
    ".tp", ".trp", ".tod", ".mod", ".3gp", ".3g2", ".3gpp", ".ogv", ".ogm", ".mxf", ".gxf", ".dv", ".rm",
    ".rmvb", ".nut", ".y4m", ".ivf", ".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".av1", ".obu",
    ".mj2", ".mjpg", ".mjpeg", ".amv", ".wtv", ".dvr-ms", ".m4s", ".cmfv", ".nsv",
}  # fmt: skip
NUM_THREADS = 2  # of a decoder; each holds frames, and a dub has three decoders
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders drop the alpha channel
Image = TypeVar("Image")


@dataclass(frozen=True)
class VideoInfo:
    """A video as a player shows it.

    width, height: in pixels, after rotation.
    pixel_aspect: width of a pixel divided by its height.
    fps: frames per second to read and dub it at: its own, of a variable frame rate the next higher standard one, 60
        at most; 25 for a still image and for a video slower than MIN_FPS.
    duration_s: length, estimated from the container.
    notes: conversions that reading applies, one sentence each.
    layout: of the samples of its frames; None if they are converted as a whole, and for a still image.
    """

    width: int
    height: int
    pixel_aspect: Fraction
    fps: Fraction
    duration_s: float
    notes: tuple[str, ...] = ()
    layout: PlaneLayout | None = None


def check_readable(path: Path) -> None:
    """Raise MediaError unless `path` is a file that can be opened and is not empty.

    A pipe is not: inputs are read twice, and opening one would wait for its other end.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise MediaError(path, "is a folder, not a file")
        if not stat.S_ISREG(mode):
            kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
            raise MediaError(path, f"is {kind}, which cannot be read twice; write it to a file first")
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise MediaError(path, "no such file") from None
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror})") from None
    if empty:
        raise MediaError(path, "the file is empty")


def open_media(path: Path) -> av.container.InputContainer:
    """`av.open` for reading; accepts any file name and metadata in any encoding."""
    # FFmpeg would take a relative "take:1.mp4" for a URL
    return av.open(str(path.absolute()), metadata_errors="replace")


def _open_video(path: Path) -> av.container.InputContainer:
    check_readable(path)
    try:
        container = open_media(path)
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(path, f"not a media file ({error_reason(error)})") from None
    if not container.streams.video:
        container.close()
        raise MediaError(path, "no video stream")
    stream = _video_stream(container)
    stream.thread_type, stream.thread_count = "AUTO", NUM_THREADS
    return container


def main_stream(streams: Sequence[av.stream.Stream]) -> av.stream.Stream:
    """The stream that a player selects: the one marked as default, else the first."""
    return next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The main video stream; cover art only if there is nothing else."""
    return moving_stream(container) or main_stream(container.streams.video)


def probe(path: Path, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """Decode the first frame of a video and describe the video.

    Raises:
        MediaError: the file is missing, empty or not a video, or no frame can be decoded.
        LimitError: the frames exceed `limits.max_side_px`.
    """
    with _open_video(path) as container:
        stream = _video_stream(container)
        frames = _timed_frames(container, stream, path, limits)
        _, first = next(frames, (0.0, None))
        if first is None:
            raise MediaError(path, _why_no_frame(container))
        width, height = _upright_size(first)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = (container.duration or 0) / av.time_base
        layout = FrameConverter().layout(first)
        fps, notes = _frame_rate(stream), describe_conversions(first, is_converted=layout is None)
        with suppress(TruncatedMediaError):  # that there is more is all that matters
            if next(frames, None) is None:
                fps, layout = Fraction(FPS), None
                notes.append(f"a still image: only the mouth moves, at {FPS} fps")
        if fps < MIN_FPS:
            notes.append(f"{float(fps):.3g} fps are too few for lips; the output has {FPS} fps")
            fps = Fraction(FPS)
        if first.width * first.height > MANY_PIXELS:
            size = f"{first.width} x {first.height}"
            notes.append(f"{size} pixels are more than many players can show; a smaller source helps")
        return VideoInfo(
            width=width,
            height=height,
            pixel_aspect=1 / aspect if is_transposed(first) else aspect,
            fps=fps,
            duration_s=duration,
            notes=tuple(notes),
            layout=layout,
        )


def _why_no_frame(container: av.container.InputContainer) -> str:
    if container.format.name.startswith("webp"):  # FFmpeg decodes still ones only
        return "no frame can be decoded; if it is an animated WebP, convert it to GIF or MP4"
    return "no frame can be decoded"


def _frame_rate(stream: av.video.stream.VideoStream) -> Fraction:
    """Frames per second of a stream, MAX_FPS at most; 25 if the container does not say."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if not average or not guessed:
        rate = average or guessed or Fraction(FPS)
    else:
        nearest = min(STANDARD_RATES, key=lambda standard: abs(standard / average - 1))
        if abs(nearest / average - 1) < 0.002:  # a standard rate, stored inexactly
            rate = nearest
        elif abs(guessed / average - 1) < 0.02:
            rate = average.limit_denominator(1001)
        else:
            densest = max(average, guessed) if guessed <= MAX_FPS else average
            rate = next((standard for standard in STANDARD_RATES if standard >= densest), MAX_FPS)
    return min(Fraction(rate), MAX_FPS)


def moving_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The main video stream, if there is one other than cover art."""
    videos = [v for v in container.streams.video if not v.disposition & Disposition.attached_pic]
    videos = [v for v in videos if v.frames != 1] or videos  # an animated AVIF has its first image as a stream too
    return main_stream(videos) if videos else None


def frame_period_s(stream: av.VideoStream) -> float:
    """Seconds from a frame to the next one if its time stamp does not tell."""
    return 1 / max(1.0, float(stream.average_rate or stream.guessed_rate or FPS))


def first_frame_time(path: Path) -> float | None:
    """Presentation time in seconds of the first frame that can be decoded; None if the file has no video stream.

    Containers may start at any time. This is time 0 of video and audio everywhere in this project. Cover art of a
    music file is a video stream too, but has no time.
    """
    try:
        with open_media(path) as container:
            stream = moving_stream(container)
            frames = _timed_frames(container, stream, path, NO_LIMITS) if stream else iter(())
            return next((time for time, _ in frames), None)
    except (av.error.FFmpegError, OSError, MediaError):
        return None


def read_frames(
    path: Path,
    start: int = 0,
    stop: int | None = None,
    fps: Fraction | int = FPS,
    limits: Limits = DEFAULT_LIMITS,
    resized: list[int] | None = None,
    only: Collection[int] | None = None,
) -> Iterator[np.ndarray]:
    """Frames `start` to `stop` (exclusive) of a video, sampled at `fps` frames per second.

    Output frame k is the source frame nearest in time to k / fps s after the first frame, so frames of 24, 29.97,
    50 fps and of variable frame rates stay in sync with the audio. They are upright, deinterlaced and SDR (see
    frame_conversion.py), and all of the size of the first: where the stream changes its size, frames are scaled
    and, if their aspect ratio differs, centred on black.

    Args:
        path: any video file.
        start: first frame to return; reached by seeking where the container supports it.
        stop: frame to stop before; None reads to the end.
        fps: 25, the frame rate of all network input, or the video's own (VideoInfo.fps).
        limits: sanity limits.
        resized: the number of each frame at which the size of the stream changes is appended before it is returned.
        only: numbers of the frames to return; the others are decoded, which takes less time than converting them.

    Yields:
        (H, W, 3) uint8 RGB.

    Raises:
        MediaError: the file cannot be opened, or no frame can be decoded.
        LimitError: the frames exceed `limits.max_side_px`.
        TruncatedMediaError: the file cannot be read any further; GapError: two frames are more than
            `limits.max_gap_s` apart. (The last frame is not repeated for longer than that.)
    """
    return _read(lambda image, size: _fit_into(to_rgb(image), size), path, start, stop, fps, limits, resized, only)


def read_video(
    path: Path,
    start: int = 0,
    stop: int | None = None,
    fps: Fraction | int = FPS,
    limits: Limits = DEFAULT_LIMITS,
    resized: list[int] | None = None,
    only: Collection[int] | None = None,
) -> Iterator[Frame]:
    """The frames of `read_frames`, with the same arguments and errors, with their samples as they were decoded.

    A frame whose time comes several times is the same object each time.
    """
    converter = FrameConverter()

    def convert(image: av.VideoFrame, size: tuple[int, int]) -> Frame:
        if _upright_size(image) != size:
            return RgbFrame(_fit_into(to_rgb(image), size))
        return converter.frame(image)

    return _read(convert, path, start, stop, fps, limits, resized, only)


def _upright_size(image: av.VideoFrame) -> tuple[int, int]:
    """Width and height as it is shown."""
    return (image.height, image.width) if is_transposed(image) else (image.width, image.height)


def _read(
    convert: Callable[[av.VideoFrame, tuple[int, int]], Image],
    path: Path,
    start: int,
    stop: int | None,
    fps: Fraction | int,
    limits: Limits,
    resized: list[int] | None,
    only: Collection[int] | None,
) -> Iterator[Image]:
    """`read_frames`; `convert` gets each decoded frame and the size of the first."""
    rate = float(fps)
    with _open_video(path) as container:
        stream = _video_stream(container)
        frames = deinterlace(_timed_frames(container, stream, path, limits))
        first = next(frames, None)
        if first is None:
            raise MediaError(path, _why_no_frame(container))
        origin, size = first[0], _upright_size(first[1])
        if start > 0:
            landed = _seek(container, stream, path, limits, origin + start / rate, 1 / rate)
            if landed is None:  # some containers cannot seek: read from the beginning
                following = (
                    range(start, sys.maxsize) if only is None else [index for index in only if index >= start]
                )
                yield from _read(convert, path, 0, stop, fps, limits, resized, following)
                return
            first, frames = landed
        index, (time, frame) = start, first
        stored_size = (frame.width, frame.height)

        def image_of(frame: av.VideoFrame) -> Image:
            nonlocal stored_size
            if resized is not None and stored_size != (frame.width, frame.height):
                resized.append(index)
            stored_size = (frame.width, frame.height)
            return convert(frame, size)

        for next_time, next_frame in frames:
            # `frame` is the nearest one for all output times before the midpoint of the two
            middle = (time + next_time) / 2
            image = None
            while origin + index / rate < middle:
                if stop is not None and index >= stop:
                    return
                if only is None or index in only:
                    image = image_of(frame) if image is None else image
                    yield image
                index += 1
            time, frame = next_time, next_frame
            if stop is not None and index >= stop:  # before the next frame is decoded: it may be damaged
                return
        # the last frame is shown for its own duration
        duration = float(frame.duration * stream.time_base) if frame.duration else 1 / rate
        end = time + min(duration, limits.max_gap_s)
        image = image_of(frame)
        while origin + index / rate < end - 0.5 / rate or index == 0:
            if stop is not None and index >= stop:
                return
            if only is None or index in only:
                yield image
            index += 1


def _fit_into(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image (H, W, 3) to fit into (width, height), centred on black."""
    width, height = image.shape[1::-1]
    if (width, height) == size:
        return image
    scale = min(size[0] / width, size[1] / height)
    scaled_size = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - scaled_size[0]) // 2, (size[1] - scaled_size[1]) // 2
    fitted = np.zeros((size[1], size[0], 3), np.uint8)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fitted[top : top + scaled_size[1], left : left + scaled_size[0]] = cv2.resize(
        image, scaled_size, interpolation=method
    )
    return fitted


def read_video_backward(
    path: Path,
    num_frames: int,
    chunk: int = 32,
    fps: Fraction | int = FPS,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Frame]:
    """The first `num_frames` frames of `read_video`, last first, with at most `chunk` of them in memory."""
    for stop in range(num_frames, 0, -chunk):
        yield from reversed(list(read_video(path, max(0, stop - chunk), stop, fps, limits)))


def _timed_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    path: Path,
    limits: Limits,
    after_seek: bool = False,
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with strictly increasing times in seconds; damaged packets are skipped.

    Raises LimitError for a frame over `limits.max_side_px`, GapError for one more than `limits.max_gap_s` after the
    previous one, TruncatedMediaError where reading fails.
    """
    if container.format.name.startswith("mov") and stream.frames == 1:
        tiled = _tiled_photo(container, stream, path, limits)
        if tiled is not None:
            yield 0.0, tiled
            return
    last = None
    period = frame_period_s(stream)
    only_dts = container.format.name == "avi"  # AVI stores no presentation times
    decode = av.Packet.decode
    if stream.metadata.get("alpha_mode") == "1" and stream.name in ALPHA_DECODERS:
        decode = av.CodecContext.create(ALPHA_DECODERS[stream.name], "r").decode
    packets = container.demux(stream)
    if stream.codec_context is not None:
        _check_size(stream.codec_context, path, limits)
    while True:
        try:
            packet = next(packets)
        except IndexError:  # of PyAV, for a stream that appears only later in the file
            packets = container.demux(stream)
            continue
        except (StopIteration, av.error.EOFError, av.error.InvalidDataError):
            return
        except av.error.FFmpegError as error:
            raise TruncatedMediaError(
                path, f"reading stopped at {last or 0:.2f} s: {error_reason(error)}"
            ) from None
        try:
            decoded = decode(packet)
        except av.error.FFmpegError:
            continue
        for frame in decoded:
            _check_size(frame, path, limits)
            stamp = frame.dts if only_dts and frame.dts is not None else frame.pts
            if stamp is None and last is None and after_seek:
                continue  # its position is unknown
            time = float(stamp * stream.time_base) if stamp is not None else None
            if time is None or (last is not None and time <= last):
                time = 0.0 if last is None else last + period
            if last is not None and time - last > limits.max_gap_s:
                raise GapError(
                    path,
                    f"expected at most {limits.max_gap_s:g} s between two frames, found {time - last:.0f} s after "
                    f"{last:.2f} s",
                )
            last = time
            yield time, frame


def _tiled_photo(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, limits: Limits
) -> av.VideoFrame | None:
    """The photo in a HEIC or AVIF file whose streams are its tiles; None for any other file.

    Raises LimitError for a photo over `limits.max_side_px`, MediaError if the tiles cannot be put together.
    """
    grid = read_tile_grid(path)
    if grid is None:
        if stream.disposition & Disposition.dependent:
            raise MediaError(path, "is made of several images in an unknown way; convert it to JPEG or PNG")
        return None
    for image in (grid, *(video.codec_context for video in container.streams.video)):
        _check_size(image, path, limits)
    return assemble(container, grid, path)


def _check_size(image: av.VideoFrame | av.VideoCodecContext | TileGrid, path: Path, limits: Limits) -> None:
    if max(image.width, image.height) > limits.max_side_px:
        found = f"{image.width} x {image.height}"
        raise LimitError(path, f"expected frames of at most {limits.max_side_px:g} pixels a side, found {found}")


def _seek(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    path: Path,
    limits: Limits,
    time: float,
    period: float,
) -> tuple[tuple[float, av.VideoFrame], Iterator[tuple[float, av.VideoFrame]]] | None:
    """The frame shown at `time` and the iterator of those after it, from the key frame before it; None if the
    container cannot seek there."""
    try:
        # two frames early: deinterlacing needs the previous frame
        container.seek(int((time - 2 * period) / stream.time_base), stream=stream, backward=True)
    except av.error.FFmpegError:
        return None
    frames = deinterlace(_timed_frames(container, stream, path, limits, after_seek=True), after_seek=True)
    current = next(frames, None)
    if current is None or current[0] > time - 0.5 * period:
        return None
    for following in frames:
        if (current[0] + following[0]) / 2 > time:
            return current, itertools.chain([following], frames)
        current = following
    return current, iter(())
