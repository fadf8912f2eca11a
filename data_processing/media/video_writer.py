"""The one place that writes video, frame by frame. A file appears under its name only when it is complete."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
import numpy as np
from av.video.reformatter import ColorRange

from data_processing.media.audio_track import audio_packets
from data_processing.media.frame import (
    SDR_LAYOUT,
    SITINGS,
    Frame,
    PlanarFrame,
    PlaneLayout,
    RgbFrame,
    new_image,
)
from data_processing.media.frame_conversion import EXACT
from data_processing.media.video_reader import FPS, open_media
from utils.errors import AudioError, MediaError, OutputError, error_reason
from utils.files import PartialFile, follow_link, output_errors
from utils.limits import DEFAULT_LIMITS, Limits

OUTPUT_SUFFIXES = {".mp4", ".mov", ".mkv"}
NUM_THREADS = 4  # of the encoder: with a fixed number the output is the same on all machines


class Encoder(NamedTuple):
    """An encoder and its options.

    name: FFmpeg's.
    options, lossless: its options, and those for crf 0 in addition.
    crf_offset: to be added to the crf of x264 for the same SSIM at 16.
    dts_lead: frames by which decoding precedes presentation: what its pyramid of B-frames needs.
    pix_fmts: what it can store; None: all of a `PlaneLayout`.
    """

    name: str
    options: dict[str, str]
    lossless: dict[str, str]
    crf_offset: int
    dts_lead: int
    pix_fmts: tuple[str, ...] | None = None


ENCODERS = {
    # superfast with the look-ahead and the motion search of veryfast: two thirds to nine tenths of its time for the
    # same quality in 3 to 5 % more bytes (tests/tools/preset_table.py); the generator needs the CPU
    "h264": Encoder(
        "libx264",
        {"preset": "superfast", "x264-params": "rc-lookahead=10:mbtree=1:subme=2"},
        {"qp": "0"},  # crf 0 is not lossless for 10 bits
        crf_offset=0,
        dts_lead=2,
    ),
    "hevc": Encoder(
        "libx265",
        {"preset": "superfast", "x265-params": "log-level=error"},
        {"x265-params": "log-level=error:lossless=1"},
        crf_offset=-2,
        dts_lead=2,
    ),
    "av1": Encoder(
        "libsvtav1",
        {"preset": "10"},
        {"svtav1-params": "lossless=1"},
        crf_offset=9,
        dts_lead=0,
        pix_fmts=("yuv420p", "yuv420p10le"),
    ),
}


def can_store(codec: str, layout: PlaneLayout) -> bool:
    """Whether an encoder, a key of ENCODERS, stores samples as `layout` has them."""
    pix_fmts = ENCODERS[codec].pix_fmts
    return pix_fmts is None or layout.pix_fmt in pix_fmts


def check_writable(path: Path) -> None:
    """Raise OutputError unless a video can be written to `path`: a supported suffix in a writable folder."""
    with output_errors(path):
        is_folder, folder = path.is_dir(), follow_link(path).parent
        is_special = path.exists() and not path.is_file()
    if is_folder:
        raise OutputError(path, "is a folder, not a file name")
    if is_special:
        raise OutputError(path, "is a pipe or a device, which a finished file cannot replace; choose another name")
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise OutputError(path, "the name must end in .mp4, .mov or .mkv")
    if not folder.is_dir():
        raise OutputError(path, f"no such folder: {folder}")
    try:
        PartialFile(path).discard()
    except OSError as error:
        raise OutputError(path, f"cannot write into {folder} ({error.strerror})") from None


class _Output:
    """A video file that is being written, with an audio track that is interleaved with the frames and ends with
    them. Use as a context manager: left normally the file gets its name, left by an exception it is removed."""

    def __init__(
        self,
        path: Path,
        fps: Fraction,
        metadata: Mapping[str, str] | None = None,
        finish: Callable[[Path], None] | None = None,
    ) -> None:
        self.path, self.fps, self._finish = path, fps, finish
        self.num_frames = 0
        self._audio = self._pending = None
        with output_errors(path):
            self._partial = PartialFile(path)
        try:
            self._container = av.open(str(self._partial.path.absolute()), "w")
            self._container.metadata.update(metadata or {})
        except (av.error.FFmpegError, OSError) as error:
            self._partial.discard()
            raise OutputError(path, f"cannot be written: {error_reason(error)}") from None

    def _add_audio(self, paths: Sequence[Path], limits: Limits) -> None:
        if not paths:
            return
        self._audio = audio_packets(paths, self._container, limits)
        try:
            self._pending = next(self._audio, None)  # adds the stream before the header is written
        except (av.error.FFmpegError, OSError) as error:
            self._discard()
            raise AudioError(paths[0], f"the audio track cannot be read: {error_reason(error)}") from None
        except BaseException:  # also an interruption
            self._discard()
            raise

    @contextlib.contextmanager
    def _muxing(self) -> Iterator[None]:
        """Around the muxing of a frame: counts it, muxes the audio up to its end, and converts errors."""
        self.num_frames += 1
        try:
            yield
            self._mux_audio()
        except (av.error.FFmpegError, OSError) as error:
            reason = f"writing stopped at frame {self.num_frames}: {error_reason(error)}"
            raise OutputError(self.path, reason) from None

    def _mux_audio(self) -> None:
        until = self.num_frames / self.fps
        while self._pending is not None and self._pending.pts * self._pending.time_base < until:
            self._container.mux(self._pending)
            self._pending = next(self._audio, None)

    def _flush(self) -> None:
        """Write the remaining video packets."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                self._mux_audio()
                self._container.close()
                if self._finish:
                    self._finish(self._partial.path)
                self._partial.move_into_place()
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(self.path, f"cannot be completed: {error_reason(error)}") from None
        finally:
            self._discard()

    def _discard(self) -> None:
        """Close what is open and leave no partial file; errors here would hide the first one."""
        if self._audio:
            self._audio.close()
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self._container.close()
        self._partial.discard()


class VideoWriter(_Output):
    """Writes H.264, HEVC or AV1 and an audio track; the file appears under its name only when complete.

    Use as a context manager. The audio ends with the video. The track of one file is copied where mp4 players
    support its codec and encoded as AAC at 192 kb/s otherwise; those of several are mixed (see audio_track.py).

    Args:
        path: output, .mp4, .mov or .mkv. Odd sizes are padded by one replicated pixel if chroma has fewer samples.
        width, height: of the frames given to `write`.
        fps: frame rate.
        crf: x264 quality, 0 (lossless) to 51; 16 is visually lossless.
        audio_paths: media files whose default audio track, else the first, becomes the audio track.
        limits: sanity limits for `audio_paths`.
        pixel_aspect: width of a pixel divided by its height, for players.
        key_frame_interval: frames from one key frame to the next, at most; None for the encoder's choice.
        layout: how samples are stored and tagged; those of a `PlanarFrame` of this layout are encoded as they are.
            None, or one that the encoder cannot store: 8 bits, 4:2:0, BT.709.
        codec: a key of ENCODERS.
        metadata: of the container, such as a comment.
        finish: called with the complete file before it gets its name, which it may change, for instance sign.

    Raises:
        OutputError: the output cannot be written.
        AudioError: one of `audio_paths` has no audio track that can be read.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: Fraction | int = FPS,
        crf: int = 16,
        audio_paths: Sequence[Path] = (),
        limits: Limits = DEFAULT_LIMITS,
        pixel_aspect: Fraction = Fraction(1),
        key_frame_interval: int | None = None,
        layout: PlaneLayout | None = None,
        codec: str = "h264",
        metadata: Mapping[str, str] | None = None,
        finish: Callable[[Path], None] | None = None,
    ):
        super().__init__(path, Fraction(fps), metadata, finish)
        self.size = (height, width)
        encoder = ENCODERS[codec]
        self.layout = layout if layout and can_store(codec, layout) else SDR_LAYOUT
        step_x, step_y = self.layout.steps
        os.environ.setdefault("SVT_LOG", "1")  # or SVT-AV1 prints what it does
        self._video = self._container.add_stream(encoder.name, rate=self.fps)
        self._video.width, self._video.height = width + width % step_x, height + height % step_y
        self._video.pix_fmt = self.layout.pix_fmt
        quality = {"crf": str(max(1, crf + encoder.crf_offset))} if crf else encoder.lossless
        self._video.options = encoder.options | quality
        _tag_hevc(self._video, path)
        if self.layout.steps != (1, 1):
            self._video.options |= {"chroma_sample_location": SITINGS.get(self.layout.siting, "unspecified")}
        context = self._video.codec_context
        context.thread_count = NUM_THREADS
        context.sample_aspect_ratio = pixel_aspect
        if key_frame_interval:
            context.gop_size = key_frame_interval
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = self.layout.tags
        self._add_audio(audio_paths, limits)

    def write(self, frame: Frame | np.ndarray) -> None:
        """Append one frame, or (H, W, 3) uint8 RGB."""
        if isinstance(frame, np.ndarray):
            if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
                found = f"{frame.shape} {frame.dtype}"
                raise ValueError(f"expected (H, W, 3) = {(*self.size, 3)} uint8, found {found}")
            frame = RgbFrame(frame)
        elif (frame.height, frame.width) != self.size:
            raise ValueError(f"expected (H, W) = {self.size}, found {(frame.height, frame.width)}")
        image = self._image(frame)
        image.pts = self.num_frames
        image.time_base = 1 / self.fps
        with self._muxing():
            self._container.mux(self._video.encode(image))

    def _image(self, frame: Frame) -> av.VideoFrame:
        """A frame as the encoder gets it: in the layout of the video, padded to its size."""
        padding = self._video.height - frame.height, self._video.width - frame.width
        if isinstance(frame, PlanarFrame) and frame.layout == self.layout:
            if frame.is_own and not any(padding):
                return frame.image
            image, planes = new_image(self.layout.pix_fmt, self._video.width, self._video.height)
            for plane, source in zip(planes, frame.planes, strict=True):
                height, width = source.shape
                plane[:height, :width] = source
                plane[height:, :width] = source[-1]
                plane[:, width:] = plane[:, width - 1 : width]
            return image
        rgb = frame.region(0, 0, frame.width, frame.height)  # the same for decoded frames and copies
        if any(padding):  # padding copies in any case
            rgb = np.pad(rgb, ((0, padding[0]), (0, padding[1]), (0, 0)), mode="edge")
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        return image.reformat(
            format=self.layout.pix_fmt,
            dst_colorspace=self.layout.matrix,
            dst_color_range=ColorRange.JPEG if self.layout.full_range else ColorRange.MPEG,
            interpolation=EXACT,
        )

    def _flush(self) -> None:
        self._container.mux(self._video.encode(None))


def _tag_hevc(video: av.VideoStream, path: Path) -> None:
    """Tag HEVC as QuickTime needs it."""
    if video.codec_context.codec.canonical_name == "hevc" and path.suffix.lower() != ".mkv":
        video.codec_context.codec_tag = "hvc1"


def concatenate_videos(
    segments: Sequence[Path],
    output: Path,
    audio_paths: Sequence[Path] = (),
    limits: Limits = DEFAULT_LIMITS,
    metadata: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Concatenate videos without re-encoding their frames.

    Args:
        segments: files of VideoWriter, all of one size, frame rate and quality. One may occur several times.
        output, audio_paths, limits, metadata, finish: as for VideoWriter.

    Raises:
        MediaError: a segment cannot be read or differs from the first.
        OutputError: there is no segment, or the output cannot be written.
        AudioError: one of `audio_paths` has no audio track that can be read.
    """
    if not segments:
        raise OutputError(output, "cannot be completed: there is no frame")
    with open_segment(segments[0]) as template:
        fps = template.average_rate.limit_denominator(1001)  # Matroska stores it in nanoseconds
        codec = template.codec_context.codec.canonical_name
        dts_lead = ENCODERS[codec].dts_lead
        with _Output(output, fps, metadata, finish) as file:
            # FFmpeg has an encoder of the decoder's name, but for AV1
            opaque = codec == "av1"
            video = file._container.add_stream_from_template(template, opaque, time_base=1 / fps)
            video.codec_context.framerate = fps
            _tag_hevc(video, output)
            file._add_audio(audio_paths, limits)
            for segment in segments:
                start = file.num_frames
                with open_segment(segment) as stream:
                    # the H.264 headers, which also contain size, frame rate, pixel aspect and crf
                    if stream.codec_context.extradata != template.codec_context.extradata:
                        raise MediaError(segment, f"was not encoded like {segments[0]}")
                    for packet in frame_packets(stream):
                        packet.pts = start + round(packet.pts * packet.time_base * fps)
                        packet.dts = file.num_frames - dts_lead
                        packet.time_base, packet.duration, packet.stream = 1 / fps, 1, video
                        with file._muxing():
                            file._container.mux(packet)


@contextlib.contextmanager
def open_segment(path: Path) -> Iterator[av.VideoStream]:
    """The video stream of a file of VideoWriter.

    Raises MediaError if it cannot be opened, or if reading it fails in the body.
    """
    try:
        with open_media(path) as container:
            if not container.streams.video:
                raise MediaError(path, "no video stream")
            yield container.streams.video[0]
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(path, f"cannot be read: {error_reason(error)}") from None


def frame_packets(stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream, one for each frame, in decoding order."""
    return (packet for packet in stream.container.demux(stream) if packet.size)
