"""The clock of audio: the main audio track of a media file without gaps, from the first video frame on.

Both readers of audio use it, `read_audio` for the lips and `audio_packets` for the audio track of the output, so
that they agree however irregular the time stamps are.
"""

import errno
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.format import Flags

from data_processing.media.video_reader import (
    first_frame_time,
    frame_period_s,
    main_stream,
    moving_stream,
    open_media,
)
from utils.errors import AudioError, LimitError, error_reason
from utils.limits import DEFAULT_LIMITS, Limits

SAMPLE_RATES = range(1000, 1_000_001)  # valid sample rates; a damaged header may turn a second into days
HOLE_S = 0.03  # a time stamp this far from the end of the audio so far is a hole or an overlap, not an inexact one
DRIFT_S = 0.01  # a time stamp this far from it is approached, by one sample a frame
OVERLAP_S = 0.5  # time stamps that go back further than this have restarted
RESTART_S = 1.0  # seconds of audio within which the video stream has restarted too
MIN_PACKET_S = 0.02  # of a packet that does not say how long it is
MAX_FAILURES = 100  # errors of a container in a row after which reading ends
logger = logging.getLogger(__name__)


@dataclass
class AudioFaults:
    """Where `timed_frames` is not what a player of the packets would make of them.

    num_damaged: packets that cannot be decoded; their time is silent.
    first_damage_s: where the first of them is.
    truncated_s: length of the track up to where reading failed for good; None if it did not.
    error: what FFmpeg said last about a damaged packet or container.
    holes_s: silence in holes of the time stamps and in place of damaged packets.
    overlap_s: audio left out because there was other audio at its time.
    joined: the time stamps restarted, or the sample rate or the channels changed.
    wrong_times: the time stamps are not those of the samples, in a container that computes them.
    num_not_finite: samples that were NaN or Inf and are 0.
    num_clipped: samples of float PCM that were over full scale.
    """

    num_damaged: int = 0
    first_damage_s: float | None = None
    truncated_s: float | None = None
    error: str = ""
    holes_s: float = 0.0
    overlap_s: float = 0.0
    joined: bool = False
    wrong_times: bool = False
    num_not_finite: int = 0
    num_clipped: int = 0

    def any(self) -> bool:
        counts = self.num_damaged, self.num_not_finite, self.num_clipped
        flags = self.joined, self.wrong_times, self.truncated_s is not None
        return any(counts) or any(flags) or self.holes_s + self.overlap_s > 0

    def log(self, path: Path) -> None:
        """Log them, one line for each kind."""
        extra = {"path": path}
        if self.num_damaged:
            message = "%s: %d packets of the audio track are damaged, the first at %.2f s; they are silent"
            logger.warning(message, path, self.num_damaged, self.first_damage_s or 0, extra=extra)
        elif self.holes_s:
            message = "%s: %.2f s are missing in the middle of the audio track; they are silent"
            logger.info(message, path, self.holes_s, extra=extra)
        if self.truncated_s is not None:
            message = "%s: the audio track is truncated at %.2f s (%s); using what precedes it"
            logger.warning(message, path, self.truncated_s, self.error, extra=extra)
        if self.num_not_finite:
            message = "%s: %d samples of the audio track are NaN or Inf; they are silent"
            logger.warning(message, path, self.num_not_finite, extra=extra)
        if self.num_clipped:
            message = "%s: %d samples of the audio track are over full scale; they are clipped"
            logger.warning(message, path, self.num_clipped, extra=extra)
        if self.joined:
            logger.info("%s: the audio track is joined from several recordings", path, extra=extra)


class _Part(NamedTuple):
    """Decoded samples (n, C) float32 at a time of the file in seconds. `exact`: they start there to the sample."""

    time: float
    samples: np.ndarray
    rate: int
    layout: str
    exact: bool

    @property
    def end(self) -> float:
        return self.time + len(self.samples) / self.rate


@contextmanager
def open_audio(path: Path) -> Iterator[av.AudioStream]:
    """The main audio stream of a file. Raises AudioError if it cannot be opened or has no audio track."""
    try:
        container = open_media(path)
    except (av.error.FFmpegError, OSError) as error:
        raise AudioError(path, f"not a media file ({error_reason(error)})") from None
    with container:
        if not container.streams.audio:
            raise AudioError(path, "no audio track")
        stream = main_stream(container.streams.audio)
        if stream.codec_context is None:
            raise AudioError(path, "no audio track that can be decoded")
        yield stream


def timed_frames(
    path: Path, limits: Limits = DEFAULT_LIMITS, faults: AudioFaults | None = None
) -> Iterator[av.AudioFrame]:
    """Frames (flt, in [-1, 1]) of the main audio track of a file, each of which starts where the one before ends.

    The first starts at time 0, that of the first video frame, or of the first sample if the file has no video. What
    is missing is silent: the time before the track starts, holes in the time stamps, damaged packets. Where the
    time stamps restart, as in recordings that were joined, the audio goes on with the video, or directly if there
    is none. Sample rate and layout may change between frames.

    Args:
        path: any media file.
        limits: `max_delay_s` holds for the start and for every hole. After a longer hole the audio goes on
            directly; so it does where holes would make the track longer than `max_duration_s`.
        faults: filled in while frames are read.

    Raises:
        AudioError: there is no audio track, or no sample of it at or after time 0 can be decoded.
        LimitError: the track starts more than `limits.max_delay_s` after the video stream.
    """
    faults = AudioFaults() if faults is None else faults
    origin = first_frame_time(path)  # the file's time of time 0; it moves where the audio goes on directly
    end, form = 0.0, None  # end of the frames so far, and sample rate and layout of the last one with samples
    exact = True  # the next frame goes where its time stamp says, to the sample
    decoded = False
    with open_audio(path) as stream:
        is_float = stream.codec_context.name.startswith("pcm_f")
        for part in _continued(stream, faults):
            decoded = True
            if faults.num_damaged and faults.first_damage_s is None:
                faults.first_damage_s = end
            origin = part.time if origin is None else origin
            gap = part.time - origin - end
            if form is None and gap > limits.max_delay_s:
                raise LimitError(path, f"the audio track starts {gap:.0f} s after the video stream")
            is_too_long = gap > HOLE_S and (gap > limits.max_delay_s or end + gap > limits.max_duration_s)
            if form and (gap < -RESTART_S or is_too_long):
                origin, gap = origin + gap, 0.0
                faults.joined = True
            exact |= part.exact or abs(gap) > HOLE_S
            samples = part.samples
            if exact and gap > 0:
                missing = round(gap * part.rate)
                faults.holes_s += missing / part.rate if form else 0
                for start in range(0, missing, part.rate):
                    length = min(part.rate, missing - start)
                    yield _frame(np.zeros((length, samples.shape[1]), np.float32), part)
                end += missing / part.rate
            elif exact:
                left_out = min(round(-gap * part.rate), len(samples))
                faults.overlap_s += left_out / part.rate if form else 0
                samples = samples[left_out:]
            elif gap > DRIFT_S:
                samples = np.concatenate([samples, samples[-1:]])
            elif gap < -DRIFT_S:
                samples = samples[:-1]
            if len(samples):
                faults.joined |= form not in (None, (part.rate, part.layout))
                form, exact = (part.rate, part.layout), False
                end += len(samples) / part.rate
                yield _frame(_cleaned(samples, is_float, faults), part)
        if faults.truncated_s is not None:
            faults.truncated_s = end
    if form is None:
        reason = "the audio track has no samples"
        if decoded:
            reason = "the audio track ends before the first video frame"
        elif faults.error:
            reason = f"the audio track cannot be decoded ({faults.error})"
        raise AudioError(path, reason)


def _frame(samples: np.ndarray, part: _Part) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=part.layout)
    frame.sample_rate = part.rate
    return frame


def _cleaned(samples: np.ndarray, is_float: bool, faults: AudioFaults) -> np.ndarray:
    """Samples in [-1, 1], 0 where they were NaN or Inf."""
    if np.abs(samples).max() <= 1:  # never true of NaN
        return samples
    finite = np.isfinite(samples)
    faults.num_not_finite += int(np.sum(~finite))
    samples = np.where(finite, samples, np.float32(0))
    if is_float:  # decoders of lossy codecs exceed full scale as a matter of course
        faults.num_clipped += int(np.sum(np.abs(samples) > 1))
    return np.clip(samples, -1, 1)


class _AudioPackets:
    """The packets of an audio stream. Damage of the container is stepped over.

    On the way it follows the video stream, to find where its time stamps restart.

    Attributes:
        num_restarts: restarts of the video so far.
        shift: seconds to add to time stamps after the last restart, so that the first frame is one period after the
            frame before it: that is where `read_frames` has it.
    """

    def __init__(self, stream: av.AudioStream, faults: AudioFaults) -> None:
        self.stream, self._faults = stream, faults
        # MP4 adds up durations, so that no time stamp can go back; its other streams lie elsewhere in the file.
        is_mp4 = "mp4" in stream.container.format.name.split(",")
        self.video = None if is_mp4 or _has_no_times(stream.container) else moving_stream(stream.container)
        self.num_restarts, self.shift = 0, 0.0
        self._last_dts: int | None = None
        self._video_end = 0.0
        self._ahead: deque[av.Packet] = deque()
        self._rest = self._read()

    def __iter__(self) -> Iterator[av.Packet]:
        while (packet := self._ahead.popleft() if self._ahead else next(self._rest, None)) is not None:
            yield packet

    def look_ahead(self) -> deque[av.Packet]:
        """The packets of the next RESTART_S of audio, fewer if the video restarts before."""
        num_before, ahead_s = self.num_restarts, sum(map(_duration_s, self._ahead))
        while self.num_restarts == num_before and ahead_s < RESTART_S:
            packet = next(self._rest, None)
            if packet is None:
                break
            self._ahead.append(packet)
            ahead_s += _duration_s(packet) or MIN_PACKET_S
        return self._ahead

    def _read(self) -> Iterator[av.Packet]:
        streams = [self.stream, self.video] if self.video else [self.stream]
        num_failures = 0
        while num_failures < MAX_FAILURES:
            try:
                for packet in self.stream.container.demux(streams):
                    num_failures = 0
                    if packet.stream is self.stream:
                        yield packet
                    elif packet.dts is not None and packet.pts is not None:
                        self._follow_video(packet)
                return
            except (av.error.FFmpegError, IndexError) as error:  # IndexError: see video_reader.py
                self._faults.error = error_reason(error)
                num_failures += 1
        self._faults.truncated_s = 0.0

    def _follow_video(self, packet: av.Packet) -> None:
        time = float(packet.pts * packet.time_base)
        if self._last_dts is not None and packet.dts < self._last_dts:
            self.num_restarts += 1
            self.shift = self._video_end - time
        self._last_dts = packet.dts
        self._video_end = max(self._video_end, time + self.shift + frame_period_s(self.video))


def _time(packet: av.Packet) -> float:
    return inf if packet.pts is None else float(packet.pts * packet.time_base)


def _duration_s(packet: av.Packet) -> float:
    return float((packet.duration or 0) * packet.time_base)


def _has_no_times(container: av.container.InputContainer) -> bool:
    """Whether time stamps are only computed from the audio itself, as in WAV, MP3 and AVI."""
    flags = container.format.flags & (Flags.generic_index.value | Flags.ts_discont.value)
    return container.format.name == "avi" or flags == Flags.generic_index.value


def _continued(stream: av.AudioStream, faults: AudioFaults) -> Iterator[_Part]:
    """The decoded track. Where its time stamps restart, its times go on; a damaged packet is an empty part at its
    end."""
    packets = _AudioPackets(stream, faults)
    has_no_times = _has_no_times(stream.container)
    converter, form = None, None
    shift, num_restarts = 0.0, 0
    offset = 0.0  # from the stamps that were computed from the audio to the times of its frames
    part: _Part | None = None  # the last one, at its time before the shift
    exact = False
    for packet in packets:
        try:
            frames = [frame for frame in packet.decode() if frame.samples]
            if any(frame.sample_rate not in SAMPLE_RATES for frame in frames):
                raise av.error.InvalidDataError(errno.EINVAL, "the sample rate is not valid")
        except av.error.FFmpegError as error:
            faults.num_damaged += 1
            faults.error = error_reason(error)
            exact = True
            if part:
                part = part._replace(time=part.end + _duration_s(packet), samples=part.samples[:0], exact=True)
                yield part._replace(time=part.time + shift)
            continue
        for frame in frames:
            if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
                converter, exact = av.AudioResampler("flt"), exact or part is not None
            (packed,) = converter.resample(frame)
            samples = packed.to_ndarray().reshape(-1, frame.layout.nb_channels)
            if frame.time is None or (has_no_times and part and not exact):
                time = part.end if part else 0.0
                offset = time - (time if frame.time is None else frame.time)
                faults.wrong_times |= abs(offset) > DRIFT_S
            else:
                time = frame.time + offset
            if part and not has_no_times and time > part.end + HOLE_S:
                if any(_time(later) < time for later in packets.look_ahead()):
                    time = part.end  # only this time stamp is damaged
            elif part and not has_no_times and time < part.end - HOLE_S:
                if packets.num_restarts == num_restarts:
                    packets.look_ahead()
                if packets.num_restarts > num_restarts:
                    shift, num_restarts, exact = packets.shift, packets.num_restarts, True
                    faults.joined = True
                elif not packets.video or part.end - time > OVERLAP_S:
                    shift, exact = shift + part.end - time, True
                    faults.joined = True
            part = _Part(time, samples, frame.sample_rate, frame.layout.name, exact)
            exact = False
            yield part._replace(time=time + shift)
