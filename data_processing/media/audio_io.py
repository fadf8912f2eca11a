"""The one place that reads and writes audio: any media file -> 16 kHz mono on the time axis of the video."""

import errno
import itertools
import logging
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from data_processing.media.video_reader import check_readable, first_frame_time, main_stream, open_media
from utils.errors import AudioError, LimitError
from utils.files import atomic_path
from utils.limits import DEFAULT_LIMITS, Limits

SAMPLE_RATE = 16000
SAMPLE_RATES = range(1000, 1_000_001)  # valid sample rates; a damaged header may turn a second into days
logger = logging.getLogger(__name__)


def load_audio(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Read the main audio track of a media file: (N,) float32, the concatenated blocks of `read_audio`."""
    return np.concatenate(list(read_audio(path, limits)))


def read_audio(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[np.ndarray]:
    """Blocks (n,) float32 in [-1, 1], mono, 16 kHz, of the audio track marked as default, else of the first.

    Sample 0 is at the time of the first video frame if the file has video (a track that starts later is padded with
    zeros, one that starts earlier is cut), otherwise it is the first sample of the track. No block is empty. If
    decoding fails midway, the part before is returned and a warning is logged.

    Raises:
        MediaError: the file is missing, a folder, empty or not a media file.
        AudioError: it has no audio track, or no sample at or after the first video frame.
        LimitError: the track starts more than `limits.max_delay_s` after the video stream.
    """
    path = Path(path)
    check_readable(path)
    _open(path).close()  # so that a file that is not media is reported before its video stream is looked for
    video_start = first_frame_time(path)
    skipped: int | None = None  # samples still to skip at the start
    started = empty = True
    for time, samples in _decode(path):
        if skipped is None:
            delay = 0 if video_start is None or time is None else round((time - video_start) * SAMPLE_RATE)
            if delay > limits.max_delay_s * SAMPLE_RATE:
                raise LimitError(path, f"the audio track starts {delay / SAMPLE_RATE:.0f} s after the video stream")
            skipped = max(0, -delay)
            samples = np.pad(samples, (max(0, delay), 0))
        left_out = min(skipped, len(samples))
        skipped -= left_out
        empty = False
        if left_out < len(samples):
            started = False
            yield samples[left_out:].astype(np.float32) / 32768
    if empty:
        raise AudioError(path, "the audio track has no samples")
    if started:
        raise AudioError(path, "the audio track ends before the first video frame")


def media_duration_s(path: Path) -> float:
    """Length of a media file in seconds as its container states it; 0 if it does not."""
    with _open(path) as container:
        return (container.duration or 0) / av.time_base


def save_wav(path: str | Path, waveform: np.ndarray) -> None:
    """Write a (N,) float waveform in [-1, 1] at 16 kHz as 16-bit PCM, atomically; values outside are clipped.

    `load_audio` returns exactly the waveform that it returned before saving.
    """
    pcm = np.clip(np.round(np.asarray(waveform, np.float64) * 32768), -32768, 32767).astype("<i2")
    with atomic_path(Path(path)) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())


def _open(path: Path) -> av.container.InputContainer:
    try:
        return open_media(path)
    except av.FFmpegError as error:
        raise AudioError(path, f"not a media file ({error.strerror})") from error


def _decode(path: Path) -> Iterator[tuple[float | None, np.ndarray]]:
    """Main audio track -> (presentation time of its start in seconds, int16 (n,) at 16 kHz mono), n > 0."""
    with _open(path) as container:
        tracks = container.streams.audio
        if not tracks:
            raise AudioError(path, "no audio track")
        track = main_stream(tracks)
        if len(tracks) > 1:
            logger.info(
                "%s: using audio track %d of %d", path, tracks.index(track) + 1, len(tracks), extra={"path": path}
            )
        start, total = None, 0
        try:
            frames = container.decode(track)
            first = list(itertools.islice(frames, 1))
            start = first[0].time if first else None
            # 16-bit on purpose: only for integer output does FFmpeg scale the mix to mono so that it cannot
            # overflow; to float, two equal channels come out at 1.41 times their amplitude.
            for part in resampled(itertools.chain(first, frames), "s16", "mono", SAMPLE_RATE):
                if part.samples:
                    total += part.samples
                    yield start, part.to_ndarray().reshape(-1)
        except av.FFmpegError as error:
            if total == 0:
                raise AudioError(path, f"the audio track cannot be decoded ({error.strerror})") from error
            logger.warning(
                "%s: the audio track is truncated at %.2f s (%s); using what precedes it",
                path,
                total / SAMPLE_RATE,
                error.strerror,
                extra={"path": path},
            )


def resampled(frames: Iterator[av.AudioFrame], format: str, layout: str, rate: int) -> Iterator[av.AudioFrame]:
    """Audio frames in one format, even where the format of the input changes midway.

    Raises av.error.InvalidDataError for a frame whose sample rate is not in SAMPLE_RATES.
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
