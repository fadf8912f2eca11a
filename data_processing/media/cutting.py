"""Cut a part out of a video stream and an audio track that are in two files, as downloaders store them."""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile, islice, takewhile
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import av
import numpy as np

from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_reader import (
    check_readable,
    first_frame_time,
    moving_stream,
    open_media,
    probe,
    read_frames,
)
from data_processing.media.video_writer import VideoWriter
from utils.errors import MediaError, OutputError, error_reason
from utils.files import atomic_path

COPIED_CODECS = {"h264", "hevc", "vp9", "av1", "aac", "opus", "mp3"}  # which an mp4 can hold
LEAD_S = 0.1  # of audio copied before the part: a packet is decoded together with the one before it
REORDERING_S = 1.0  # by which a frame may be stored before frames that are shown earlier
ENCODED_CRF = 12  # nearly lossless, because the parts are training data


class Box(NamedTuple):
    """A region of a frame: its left and top edge, width and height in pixels."""

    left: int
    top: int
    width: int
    height: int


def cut(video: Path, audio: Path, start_s: float, stop_s: float, output: Path, box: Box | None = None) -> None:
    """Write an interval of a video stream and an audio track to an mp4.

    Without `box` the packets are copied, not encoded again. The file then begins with the last key frame before
    `start_s`, and an edit list tells players to begin at `start_s`; it ends where the last group of frames before
    `stop_s` is complete. With `box`, or if an mp4 cannot hold the packets, the frames are encoded at crf 12, and
    the audio as mono at 16 kHz, which is how `load_audio` reads any track.

    Args:
        video: file with a video stream.
        audio: file with an audio track and no video stream.
        start_s, stop_s: time stamps of both files, in seconds. The part is shorter where the video begins later or
            ends earlier.
        output: .mp4.
        box: region of the frames to keep; what of it lies outside the frame is left out.

    Raises:
        MediaError: a file cannot be read, or has nothing in the interval or in `box`.
        OutputError: `output` cannot be written.
    """
    if box is None and _can_be_copied(video, audio, start_s):
        _copy(video, audio, start_s, stop_s, output)
    else:
        _encode(video, audio, start_s, stop_s, output, box)


def _can_be_copied(video: Path, audio: Path, start_s: float) -> bool:
    """Whether an mp4 can hold the packets of both streams, and the video can be entered at a key frame."""
    with _open(video, audio) as (stream, track):
        first = next(_packets(stream, video, start_s), None)
        codecs = {source.codec_context.codec.canonical_name for source in (stream, track)}
        return codecs <= COPIED_CODECS and first is not None and first.is_keyframe


@contextmanager
def _open(video: Path, audio: Path) -> Iterator[tuple[av.VideoStream, av.AudioStream]]:
    """The video stream and the audio track of two files. Raises MediaError."""
    for path in (video, audio):
        check_readable(path)
    try:
        with open_media(video) as frames, open_media(audio) as sound:
            stream = moving_stream(frames)
            if stream is None:
                raise MediaError(video, "no video stream")
            if not sound.streams.audio:
                raise MediaError(audio, "no audio track")
            yield stream, sound.streams.audio[0]
    except av.error.InvalidDataError as error:
        raise MediaError(video, f"not a media file, or {audio} is not ({error_reason(error)})") from None


def _packets(stream: av.VideoStream | av.AudioStream, path: Path, start_s: float) -> Iterator[av.Packet]:
    """The packets of a stream of the file `path` from the last key frame at or before `start_s` on."""
    try:
        stream.container.seek(int(start_s / stream.time_base), stream=stream, backward=True)
        for packet in stream.container.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                yield packet
    except av.error.FFmpegError as error:
        raise MediaError(path, f"cannot be read at {start_s:g} s: {error_reason(error)}") from None


def _copy(video: Path, audio: Path, start_s: float, stop_s: float, output: Path) -> None:
    with _open(video, audio) as (stream, track):
        count = _num_complete(stream, video, start_s, stop_s)
        try:
            with atomic_path(output) as partial, av.open(str(partial.absolute()), "w") as container:
                # opaque: without looking for an encoder of the same name, which not every decoder has
                copies = {
                    source: container.add_stream_from_template(source, opaque=True) for source in (stream, track)
                }
                heard = dropwhile(
                    lambda packet: packet.pts * packet.time_base < start_s - LEAD_S,
                    _packets(track, audio, start_s - LEAD_S),
                )
                heard = takewhile(lambda packet: packet.dts * packet.time_base < stop_s, heard)
                seen = islice(_packets(stream, video, start_s), count)
                for packet in heapq.merge(seen, heard, key=lambda packet: packet.dts * packet.time_base):
                    shift = round(start_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    packet.stream = copies[packet.stream]
                    container.mux(packet)
        except av.error.FFmpegError as error:
            raise OutputError(output, f"cannot be written: {error_reason(error)}") from None


def _num_complete(stream: av.VideoStream, video: Path, start_s: float, stop_s: float) -> int:
    """How many packets from the key frame before `start_s` on hold frames before `stop_s` only, and every frame
    that is shown before the last of them. Raises MediaError if there is no frame in the interval."""
    until_s = stop_s + REORDERING_S
    read = takewhile(lambda packet: packet.dts * packet.time_base < until_s, _packets(stream, video, start_s))
    times = np.array([float(packet.pts * packet.time_base) for packet in read])
    latest = np.maximum.accumulate(times)
    earliest_after = np.append(np.minimum.accumulate(times[:0:-1])[::-1], inf)[: len(times)]
    ends = np.flatnonzero((latest < stop_s) & (latest < earliest_after))
    if not len(ends) or latest[ends[-1]] < start_s:
        raise MediaError(video, f"has no frame between {start_s:g} and {stop_s:g} s")
    return int(ends[-1]) + 1


def _encode(video: Path, audio: Path, start_s: float, stop_s: float, output: Path, box: Box | None) -> None:
    with _open(video, audio) as (_, track):
        audio_from_s = float((track.start_time or 0) * track.time_base)
    info = probe(video)
    rows, columns = _slices(video, info.height, info.width, box)
    video_from_s = first_frame_time(video) or 0.0
    first, last = (max(0, round((time_s - video_from_s) * info.fps)) for time_s in (start_s, stop_s))
    frames = read_frames(video, first, last, info.fps)
    parts = (frame[rows, columns] for frame in frames)
    part = next(parts, None)
    if part is None:
        raise MediaError(video, f"has no frame between {start_s:g} and {stop_s:g} s")
    # the audio begins with the first frame of the part, in silence where the track begins later
    begin_s = video_from_s + first / float(info.fps)
    start, stop = (round((time_s - audio_from_s) * SAMPLE_RATE) for time_s in (begin_s, stop_s))
    waveform = np.pad(load_audio(audio), (max(0, -start), 0))[max(0, start) : max(0, stop) + max(0, -start)]
    with TemporaryDirectory() as folder:
        wav = Path(folder) / "audio.wav"
        save_wav(wav, waveform)
        height, width = part.shape[:2]
        options = {"crf": ENCODED_CRF, "audio_paths": [wav], "pixel_aspect": info.pixel_aspect}
        with VideoWriter(output, width, height, info.fps, **options) as writer:
            writer.write(part)
            for part in parts:
                writer.write(part)


def _slices(video: Path, height: int, width: int, box: Box | None) -> tuple[slice, slice]:
    """Rows and columns of the part of a frame that is in `box`; of the whole frame without one."""
    if box is None:
        return slice(None), slice(None)
    rows = slice(max(0, box.top), min(height, box.top + box.height))
    columns = slice(max(0, box.left), min(width, box.left + box.width))
    if rows.stop <= rows.start or columns.stop <= columns.start:
        raise MediaError(video, f"expected a box within {width} x {height} pixels, found {tuple(box)}")
    return rows, columns
