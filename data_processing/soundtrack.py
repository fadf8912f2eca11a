"""The sound of a video that is written: packets for its container, from any media file."""

import contextlib
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from data_processing.audio import resampled
from data_processing.errors import UserError
from data_processing.video import first_frame_time, main_track, open_media

COPIED_AUDIO = {"aac", "ac3", "eac3"}  # what every player of mp4, mov and mkv understands
AAC_BIT_RATE = 192_000
AAC_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def sound_packets(path: Path, output: av.container.OutputContainer) -> Iterator[av.Packet]:
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


def _up_to_damage(items: Iterator) -> Iterator:
    """Packets or frames up to the end or to where reading fails (`load_audio` warns of that)."""
    with contextlib.suppress(av.error.FFmpegError):
        yield from items
