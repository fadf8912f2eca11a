"""The one place that reads audio: any media file -> mono 16 kHz float waveform on the video's time axis."""

import errno
import itertools
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from data_processing.errors import UserError
from data_processing.limits import HOW_TO_LIFT, limits
from data_processing.video import check_readable, first_frame_time, main_track, open_media

SAMPLE_RATE = 16000
SAMPLE_RATES = range(1000, 1_000_001)  # of sound; a damaged header may make days of a second


def load_audio(path: str | Path, flag: str = "--audio") -> np.ndarray:
    """Read the main audio track of a sound or video file: (N,) float32, the pieces of `read_audio` in one."""
    return np.concatenate(list(read_audio(path, flag)))


def read_audio(path: str | Path, flag: str = "--audio") -> Iterator[np.ndarray]:
    """Pieces (n,) float32 in [-1, 1], mono, 16 kHz of the audio track marked default, else the first, of a sound
    or video file, none empty.

    Sample 0 is the time of the first video frame if the file has video (a track that starts later is padded with
    zeros, one that starts earlier is cut), otherwise the first sample of the track. If decoding fails midway, the
    part before is given and stderr is warned; it is also told where there are several tracks.

    Raises UserError (naming `flag` and the file) if the file is missing, a folder, empty, not media, or has
    no audio at or after its first video frame, or only over `limits.delay_s` later, or at a rate that is not
    between 1 kHz and 1 MHz.
    """
    path = Path(path)
    check_readable(path, flag)
    _open(path, flag).close()  # a file that is no media is told of by its own words
    video_start = first_frame_time(path)
    skipped: int | None = None  # samples still to leave out at the start
    started = empty = True
    for time, samples in _decode(path, flag):
        if skipped is None:
            delay = 0 if video_start is None or time is None else round((time - video_start) * SAMPLE_RATE)
            if delay > limits.delay_s * SAMPLE_RATE:
                raise UserError(
                    f"{flag} {path}: the audio track begins {delay / SAMPLE_RATE:.0f} s after the picture "
                    f"({HOW_TO_LIFT})"
                )
            skipped = max(0, -delay)
            samples = np.pad(samples, (max(0, delay), 0))
        left_out = min(skipped, len(samples))
        skipped -= left_out
        empty = False
        if left_out < len(samples):
            started = False
            yield samples[left_out:].astype(np.float32) / 32768
    if empty:
        raise UserError(f"{flag} {path}: the audio track holds no samples")
    if started:
        raise UserError(f"{flag} {path}: the audio track ends before the first video frame")


def media_seconds(path: Path) -> float:
    """How long a media file says it is; 0 if it does not say."""
    with _open(path, "--audio") as container:
        return (container.duration or 0) / av.time_base


def save_wav(path: str | Path, waveform: np.ndarray) -> None:
    """Write a (N,) float waveform in [-1, 1] at 16 kHz as 16-bit PCM, atomically; values outside are clipped.

    Exact inverse of `load_audio` for what that returned.
    """
    path = Path(path)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    pcm = np.clip(np.round(np.asarray(waveform, np.float64) * 32768), -32768, 32767).astype("<i2")
    try:
        with wave.open(str(partial), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(pcm.tobytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: Path, flag: str) -> av.container.InputContainer:
    try:
        return open_media(path)
    except av.FFmpegError as error:
        raise UserError(f"{flag} {path}: not a media file that can be read ({error.strerror})") from error


def _decode(path: Path, flag: str) -> Iterator[tuple[float | None, np.ndarray]]:
    """Main audio track -> (presentation time of its start in seconds, int16 (n,) at 16 kHz mono), n > 0."""
    with _open(path, flag) as container:
        tracks = container.streams.audio
        if not tracks:
            raise UserError(f"{flag} {path}: expected an audio track, found none")
        track = main_track(tracks)
        if len(tracks) > 1:
            print(
                f"note: {flag} {path}: of {len(tracks)} audio tracks number {tracks.index(track) + 1} is taken",
                file=sys.stderr,
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
                raise UserError(f"{flag} {path}: the audio track cannot be decoded ({error.strerror})") from error
            print(
                f"warning: {flag} {path}: audio decoding stopped at {total / SAMPLE_RATE:.2f} s "
                f"({error.strerror}); using what came before",
                file=sys.stderr,
            )


def resampled(frames: Iterator[av.AudioFrame], format: str, layout: str, rate: int) -> Iterator[av.AudioFrame]:
    """The same sound in one format, whatever that of the frames changes to on the way.

    Raises av.error.InvalidDataError at a frame of a rate that is none of SAMPLE_RATES.
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
