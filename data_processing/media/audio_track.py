"""The audio track of a video that is being written: packets for its container, from any media files."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_processing.media.audio_clock import AudioFaults, open_audio, timed_frames
from data_processing.media.audio_io import resampled
from data_processing.media.video_reader import first_frame_time
from utils.limits import DEFAULT_LIMITS, Limits

COPIED_CODECS = {"aac", "ac3", "eac3"}  # which every player of mp4, mov and mkv supports
AAC_BIT_RATE = 192_000
AAC_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
INTEGER = "s16p"  # only to integers does FFmpeg scale a downmix so that it cannot overflow
MIX_RATE = 48000
MIX_BLOCK = 1024  # samples mixed at a time


def check_audio_tracks(paths: Sequence[Path], limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise AudioError unless every file has an audio track of which at least the beginning can be decoded."""
    for path in paths:
        next(timed_frames(path, limits))


def audio_packets(
    paths: Sequence[Path], output: av.container.OutputContainer, limits: Limits = DEFAULT_LIMITS
) -> Iterator[av.Packet]:
    """Packets for a new stream of `output` with the main audio tracks of files, mixed if there are several.

    Each track has the time and the content that `timed_frames` gives it. A single track is copied if its codec is
    one of COPIED_CODECS and its packets play just so, else encoded as AAC. Several are summed and clipped to full
    scale: 48 kHz, stereo, AAC, as long as the longest.

    Raises:
        AudioError: a file has no audio track that can be decoded.
        LimitError: see `timed_frames`.
    """
    if len(paths) > 1:
        check_audio_tracks(paths, limits)
        target = output.add_stream("aac", rate=MIX_RATE, layout="stereo")
        yield from _encoded(_mixed(paths, limits), target)
        return
    (path,) = paths
    with open_audio(path) as stream:
        codec, rate, channels = stream.codec_context.name, stream.rate, stream.channels
    if codec in COPIED_CODECS and _plays_as_decoded(path, limits):
        yield from _copied(path, output)
    else:
        rate = min((valid for valid in AAC_SAMPLE_RATES if valid >= rate), default=AAC_SAMPLE_RATES[-1])
        layout = "mono" if channels == 1 else "stereo"
        target = output.add_stream("aac", rate=rate, layout=layout)
        yield from _encoded(resampled(timed_frames(path, limits), INTEGER, layout, rate), target)


def _plays_as_decoded(path: Path, limits: Limits) -> bool:
    """Whether a player of the packets makes of them what `timed_frames` does. Decodes the whole track."""
    faults = AudioFaults()
    return not any(faults.any() for _ in timed_frames(path, limits, faults)) and not faults.any()


def _encoded(parts: Iterator[av.AudioFrame], target: av.AudioStream) -> Iterator[av.Packet]:
    """`parts` in s16p or fltp in sequence from time 0, encoded as AAC."""
    target.bit_rate = AAC_BIT_RATE
    position = 0
    for part in parts:
        part.pts, part.time_base = position, Fraction(1, part.sample_rate)
        position += part.samples
        yield from target.encode(part)
    yield from target.encode(None)


def _copied(path: Path, output: av.container.OutputContainer) -> Iterator[av.Packet]:
    """The packets of a track, not re-encoded, from the first that starts at or after time 0."""
    origin_s = first_frame_time(path)
    with open_audio(path) as stream:
        if origin_s is None:
            origin_s = float((stream.start_time or 0) * stream.time_base)
        target = output.add_stream_from_template(stream)
        shift = round(origin_s / stream.time_base)
        for packet in stream.container.demux(stream):
            if packet.dts is None or packet.pts is None or packet.pts - shift < 0:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = target
            yield packet


def _mixed(paths: Sequence[Path], limits: Limits) -> Iterator[av.AudioFrame]:
    """The sum of tracks from time 0 to the end of the longest, clipped to full scale: 48 kHz stereo, MIX_BLOCK
    samples at a time."""
    sources = [_samples(path, limits) for path in paths]
    waiting = [np.zeros((2, 0), np.float32) for _ in paths]
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


def _samples(path: Path, limits: Limits) -> Iterator[np.ndarray]:
    """A track at 48 kHz: (2, n) float32 in [-1, 1]."""
    # Mono is duplicated here because FFmpeg would lower it by 3 dB.
    with open_audio(path) as stream:
        layout = "mono" if stream.channels == 1 else "stereo"
    for part in resampled(timed_frames(path, limits), INTEGER, layout, MIX_RATE):
        samples = part.to_ndarray().astype(np.float32) / 32768
        yield np.broadcast_to(samples, (2, samples.shape[1]))
