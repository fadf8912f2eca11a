"""The one place that reads and writes audio: any media file -> 16 kHz mono on the time axis of the video."""

import logging
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from data_processing.media.audio_clock import AudioFaults, open_audio, timed_frames
from data_processing.media.video_reader import check_readable, open_media
from utils.errors import AudioError
from utils.files import atomic_path
from utils.limits import DEFAULT_LIMITS, Limits

SAMPLE_RATE = 16000
# in the mix to mono, before they are scaled to a sum of 1; of a channel that is not named here 0.5, as in FFmpeg
CHANNEL_WEIGHTS = {"FC": 1.0, "FL": 0.5**0.5, "FR": 0.5**0.5, "LFE": 0.0, "LFE2": 0.0}
CANCELLED = 1 / 4  # ratio of the energy of the mix to that of its channels below which they cancel each other
RESTORED = 1 / 2  # above which they no longer do; it is 1 for channels that are not correlated
MIX_BLOCK_S = 0.25
MIX_FADE_S = 0.01
logger = logging.getLogger(__name__)


def load_audio(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
    """Read the main audio track of a media file: (N,) float32, the concatenated blocks of `read_audio`."""
    return np.concatenate(list(read_audio(path, limits)))


def read_audio(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[np.ndarray]:
    """Blocks (n,) float32 in [-1, 1], mono, 16 kHz, of the audio track marked as default, else of the first.

    Sample 0 is at the time of the first video frame if the file has video (a track that starts later is padded with
    zeros, one that starts earlier is cut), otherwise it is the first sample of the track. Holes in the time stamps
    and damaged packets are silent (see audio_clock.py); a warning is logged when reading ends. No block is empty.

    Raises:
        MediaError: the file is missing, a folder, empty or not a media file.
        AudioError: it has no audio track, or no sample at or after the first video frame.
        LimitError: the track starts more than `limits.max_delay_s` after the video stream.
    """
    path = Path(path)
    check_readable(path)
    with open_audio(path) as stream:
        tracks = stream.container.streams.audio
        if len(tracks) > 1:
            message = "%s: using audio track %d of %d"
            logger.info(message, path, tracks.index(stream) + 1, len(tracks), extra={"path": path})
    faults, empty = AudioFaults(), True
    try:
        # 16 bits, as `save_wav` writes them
        for part in resampled(mixed_to_mono(timed_frames(path, limits, faults)), "s16", "mono", SAMPLE_RATE):
            if part.samples:
                empty = False
                yield part.to_ndarray().reshape(-1).astype(np.float32) / 32768
    finally:
        faults.log(path)
    if empty:  # fewer than one at 16 kHz
        raise AudioError(path, "the audio track has no samples")


def media_duration_s(path: Path) -> float:
    """Length of a media file in seconds as its container states it; 0 if it does not."""
    try:
        with open_media(path) as container:
            return (container.duration or 0) / av.time_base
    except av.FFmpegError as error:
        raise AudioError(path, f"not a media file ({error.strerror})") from error


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


def mixed_to_mono(frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    """Mono frames (flt) from frames in flt: the weighted mean of the channels (CHANNEL_WEIGHTS).

    Where the channels cancel each other, as when one is the other inverted, the loudest is used alone. That is
    decided for each block of MIX_BLOCK_S.
    """
    form, mean, weights = None, None, None
    for samples, rate, layout in _blocks(frames):
        if form != (form := (rate, layout.name)):
            mean = np.array([CHANNEL_WEIGHTS.get(channel.name, 0.5) for channel in layout.channels], np.float32)
            mean = mean / mean.sum() if mean.any() else np.full_like(mean, 1 / len(mean))
            weights = None
        previous = weights
        energies = np.square(samples * mean).sum(axis=0)
        mixed_energy = np.square(samples @ mean).sum()
        if weights is None or mixed_energy > RESTORED * energies.sum():
            weights = mean
        if weights is mean and mixed_energy < CANCELLED * energies.sum():
            weights = np.eye(len(mean), dtype=np.float32)[energies.argmax()]
        mixed = samples @ weights
        if previous is not None and previous is not weights:
            fade = np.clip(np.arange(len(samples)) / (MIX_FADE_S * rate), 0, 1)
            mixed = fade * mixed + (1 - fade) * (samples @ previous)
        frame = av.AudioFrame.from_ndarray(mixed.astype(np.float32)[None], format="flt", layout="mono")
        frame.sample_rate = rate
        yield frame


def _blocks(frames: Iterator[av.AudioFrame]) -> Iterator[tuple[np.ndarray, int, av.AudioLayout]]:
    """Consecutive frames of one form joined to about MIX_BLOCK_S: samples (n, C), rate and layout."""
    held: list[np.ndarray] = []
    length, last = 0, None
    for frame in frames:
        changed = last and (last.sample_rate, last.layout.name) != (frame.sample_rate, frame.layout.name)
        if changed or length >= MIX_BLOCK_S * frame.sample_rate:
            yield np.concatenate(held), last.sample_rate, last.layout
            held, length = [], 0
        held.append(frame.to_ndarray().reshape(-1, frame.layout.nb_channels))
        length, last = length + frame.samples, frame
    if last:
        yield np.concatenate(held), last.sample_rate, last.layout


def resampled(frames: Iterator[av.AudioFrame], format: str, layout: str, rate: int) -> Iterator[av.AudioFrame]:
    """Audio frames in one format, even where the format of the input changes midway."""
    source, resampler = None, None
    for frame in frames:
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != found:  # a resampler takes one format only
            yield from resampler.resample(None) if resampler else ()
            source, resampler = found, av.AudioResampler(format, layout, rate)
        yield from resampler.resample(frame)
    yield from resampler.resample(None) if resampler else ()
