"""The audio track of a video that is being written: packets for its container, from any media files."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from data_processing.media.audio_io import resampled
from data_processing.media.video_reader import first_frame_time, main_stream, open_media
from utils.errors import AudioError, error_reason

COPIED_CODECS = {"aac", "ac3", "eac3"}  # which every player of mp4, mov and mkv supports
AAC_BIT_RATE = 192_000
AAC_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
MIX_RATE = 48000
MIX_BLOCK = 1024  # samples mixed at a time


class _Track(NamedTuple):
    """The main audio track of an open file.

    origin_s: the file's time that becomes 0.
    first_s: time of the first of the decoded `frames`, None if unknown.
    """

    path: Path
    stream: av.AudioStream
    origin_s: float
    first_s: float | None
    frames: Iterator[av.AudioFrame]

    def position(self, rate: int) -> int:
        """Where the first frame starts, in samples after time 0."""
        return 0 if self.first_s is None else round((self.first_s - self.origin_s) * rate)


def check_audio_tracks(paths: Sequence[Path]) -> None:
    """Raise AudioError unless every file has an audio track of which at least the beginning can be decoded."""
    for path in paths:
        with _opened(path):
            pass


def audio_packets(paths: Sequence[Path], output: av.container.OutputContainer) -> Iterator[av.Packet]:
    """Packets for a new stream of `output` with the main audio tracks of files, mixed if there are several.

    Time 0 is that of a file's first video frame, or of its first audio sample if it has no video. A single track is
    copied if its codec is one of COPIED_CODECS, else encoded as AAC. Several are summed and clipped to full scale:
    48 kHz, stereo, AAC, as long as the longest.

    Raises:
        AudioError: a file has no audio track that can be decoded.
    """
    with contextlib.ExitStack() as stack:
        tracks = [stack.enter_context(_opened(path)) for path in paths]
        only = tracks[0]
        if len(tracks) > 1:
            target = output.add_stream("aac", rate=MIX_RATE, layout="stereo")
            yield from _encoded(_mixed(tracks), target, 0)
        elif only.stream.codec_context.name in COPIED_CODECS:
            yield from _copied(only, output)
        else:
            rates = (rate for rate in AAC_SAMPLE_RATES if rate >= only.stream.rate)
            rate = min(rates, default=AAC_SAMPLE_RATES[-1])
            layout = "mono" if only.stream.channels == 1 else "stereo"
            target = output.add_stream("aac", rate=rate, layout=layout)
            parts = resampled(only.frames, "fltp", layout, rate)
            yield from _encoded(_until_damage(parts), target, only.position(rate))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Track]:
    try:
        source = open_media(path)
    except (av.error.FFmpegError, OSError) as error:
        raise AudioError(path, f"not a media file ({error_reason(error)})") from None
    with source:
        stream = main_stream(source.streams.audio) if source.streams.audio else None
        if stream is None or stream.codec_context is None:
            raise AudioError(path, "no audio track that can be decoded")
        origin = first_frame_time(path)
        if origin is None:
            origin = float((stream.start_time or 0) * stream.time_base)
        frames = _until_damage(source.decode(stream))
        first = next(frames, None)
        if first is None:
            raise AudioError(path, "the audio track cannot be decoded")
        yield _Track(path, stream, origin, first.time, itertools.chain([first], frames))


def _encoded(parts: Iterator[av.AudioFrame], target: av.AudioStream, position: int) -> Iterator[av.Packet]:
    """`parts` in sequence, encoded as AAC; the first starts `position` samples after time 0 (negative: before)."""
    target.bit_rate = AAC_BIT_RATE
    for part in parts:
        part.pts, part.time_base = position, Fraction(1, part.sample_rate)
        position += part.samples
        if position > 0:
            yield from target.encode(part)
    yield from target.encode(None)


def _copied(track: _Track, output: av.container.OutputContainer) -> Iterator[av.Packet]:
    """The packets of a track, not re-encoded. The file is opened again, since some of it has been decoded."""
    with open_media(track.path) as source:
        stream = main_stream(source.streams.audio)
        target = output.add_stream_from_template(stream)
        shift = round(track.origin_s / stream.time_base)
        for packet in _until_damage(source.demux(stream)):
            if packet.dts is None or packet.pts is None or packet.pts - shift < 0:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = target
            yield packet


def _mixed(tracks: list[_Track]) -> Iterator[av.AudioFrame]:
    """The sum of tracks from time 0 to the end of the longest, clipped to full scale: 48 kHz stereo, MIX_BLOCK
    samples at a time."""
    sources = [_samples(track) for track in tracks]
    waiting = [np.zeros((2, 0), np.float32) for _ in tracks]
    while True:
        for index, source in enumerate(sources):
            while waiting[index].shape[1] < MIX_BLOCK and (more := next(source, None)) is not None:
                waiting[index] = np.concatenate([waiting[index], more], axis=1)
        length = min(MIX_BLOCK, max(samples.shape[1] for samples in waiting))
        if not length:
            return
        total = np.zeros((2, length), np.float32)
        for index, samples in enumerate(waiting):
            part = samples[:, :length]
            total[:, : part.shape[1]] += part
            waiting[index] = samples[:, length:]
        frame = av.AudioFrame.from_ndarray(np.clip(total, -1, 1), format="fltp", layout="stereo")
        frame.sample_rate = MIX_RATE
        yield frame


def _samples(track: _Track) -> Iterator[np.ndarray]:
    """A track from time 0 at 48 kHz: (2, n) float32 in [-1, 1], silence before its start."""
    position = track.position(MIX_RATE)
    for done in range(0, position, MIX_BLOCK):
        yield np.zeros((2, min(MIX_BLOCK, position - done)), np.float32)
    skipped = max(0, -position)  # samples before time 0
    # Mono is duplicated here because FFmpeg would lower it by 3 dB. Integer output because only then does FFmpeg
    # scale a downmix from more than two channels so that it cannot overflow.
    layout = "mono" if track.stream.channels == 1 else "stereo"
    for part in _until_damage(resampled(track.frames, "s16p", layout, MIX_RATE)):
        left_out = min(skipped, part.samples)
        skipped -= left_out
        samples = part.to_ndarray()[:, left_out:].astype(np.float32) / 32768
        yield np.broadcast_to(samples, (2, samples.shape[1]))


def _until_damage(items: Iterator) -> Iterator:
    """Packets or frames up to the end, or to where reading fails (`read_audio` logs a warning there)."""
    with contextlib.suppress(av.error.FFmpegError):
        yield from items
