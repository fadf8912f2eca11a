"""The one place that reads audio: any media file -> mono 16 kHz float waveform on the video's time axis."""

import itertools
import sys
import wave
from pathlib import Path

import av
import numpy as np

from data_processing.errors import UserError
from data_processing.video import check_readable, first_frame_time, open_media, resampled

SAMPLE_RATE = 16000
MAX_DELAY_S = 3600  # of the sound after the picture; a damaged time stamp may ask for days of silence


def load_audio(path: str | Path, flag: str = "--audio") -> np.ndarray:
    """Read the first audio track of a sound or video file.

    Returns (N,) float32 in [-1, 1], mono, 16 kHz. Sample 0 is the time of the first video frame if the file
    has video (a track that starts later is padded with zeros, one that starts earlier is cut), otherwise the
    first sample of the track. If decoding fails midway, the part before is returned and stderr is warned.

    Raises UserError (naming `flag` and the file) if the file is missing, a folder, empty, not media, or has
    no audio at or after its first video frame, or only over MAX_DELAY_S later, or at a rate that is not between
    1 kHz and 1 MHz.
    """
    path = Path(path)
    check_readable(path, flag)
    samples, audio_start = _decode(path, flag)
    if len(samples) == 0:
        raise UserError(f"{flag} {path}: the audio track holds no samples")

    video_start = first_frame_time(path)
    if video_start is not None and audio_start is not None:
        delay = round((audio_start - video_start) * SAMPLE_RATE)
        if delay > MAX_DELAY_S * SAMPLE_RATE:
            raise UserError(f"{flag} {path}: the audio track begins {delay / SAMPLE_RATE:.0f} s after the picture")
        samples = np.pad(samples, (delay, 0)) if delay > 0 else samples[-delay:]
        if len(samples) == 0:
            raise UserError(f"{flag} {path}: the audio track ends before the first video frame")
    return samples.astype(np.float32) / 32768


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


def _decode(path: Path, flag: str) -> tuple[np.ndarray, float | None]:
    """First audio track -> (int16 samples (N,) at 16 kHz mono, presentation time of the first in seconds)."""
    chunks: list[np.ndarray] = []
    start: float | None = None
    with _open(path, flag) as container:
        if not container.streams.audio:
            raise UserError(f"{flag} {path}: expected an audio track, found none")
        try:
            frames = container.decode(audio=0)
            first = list(itertools.islice(frames, 1))
            start = first[0].time if first else None
            # 16-bit on purpose: only for integer output does FFmpeg scale the mix to mono so that it cannot
            # overflow; to float, two equal channels come out at 1.41 times their amplitude.
            for part in resampled(itertools.chain(first, frames), "s16", "mono", SAMPLE_RATE):
                chunks.append(part.to_ndarray().reshape(-1))
        except av.FFmpegError as error:
            stopped = sum(map(len, chunks)) / SAMPLE_RATE
            if stopped == 0:
                raise UserError(f"{flag} {path}: the audio track cannot be decoded ({error.strerror})") from error
            print(
                f"warning: {flag} {path}: audio decoding stopped at {stopped:.2f} s ({error.strerror}); "
                "using what came before",
                file=sys.stderr,
            )
    return (np.concatenate(chunks) if chunks else np.zeros(0, np.int16)), start
