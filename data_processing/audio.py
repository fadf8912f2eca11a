"""The one place that reads audio: any media file -> mono 16 kHz float waveform on the video's time axis."""

import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from data_processing.errors import UserError
from data_processing.video import check_readable, first_frame_time, main_track

SAMPLE_RATE = 16000


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
    no audio at or after its first video frame.
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
        return av.open(str(path.resolve()))  # "take:1.wav" would be read as an address
    except av.FFmpegError as error:
        raise UserError(f"{flag} {path}: not a media file that can be read ({error.strerror})") from error


def _decode(path: Path, flag: str) -> Iterator[tuple[float | None, np.ndarray]]:
    """Main audio track -> (presentation time of its start in seconds, int16 (n,) at 16 kHz mono), n > 0."""
    start: float | None = None
    source_format = resampler = None
    total = 0

    def converted(frame: av.AudioFrame | None) -> list[np.ndarray]:
        # 16-bit on purpose: only for integer output does FFmpeg scale the mix to mono so that it cannot
        # overflow; to float, two equal channels come out at 1.41 times their amplitude.
        nonlocal source_format, resampler
        parts = []
        if frame is not None and source_format != (frame.format.name, frame.layout.name, frame.sample_rate):
            parts = converted(None)  # a resampler takes one format only; some streams change theirs
            source_format = (frame.format.name, frame.layout.name, frame.sample_rate)
            resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        if resampler is not None:
            parts += [out.to_ndarray().reshape(-1) for out in resampler.resample(frame) if out.samples]
        return parts

    with _open(path, flag) as container:
        if not container.streams.audio:
            raise UserError(f"{flag} {path}: expected an audio track, found none")
        tracks = container.streams.audio
        track = main_track(tracks)
        if len(tracks) > 1:
            print(
                f"note: {flag} {path}: of {len(tracks)} audio tracks number {tracks.index(track) + 1} is taken",
                file=sys.stderr,
            )
        frames = container.decode(track)
        ended = False
        while not ended:
            try:
                frame = next(frames, None)
                if start is None and frame is not None:
                    start = frame.time
                ended = frame is None
                parts = converted(frame)
            except av.FFmpegError as error:
                stopped = total / SAMPLE_RATE
                if stopped == 0:
                    raise UserError(
                        f"{flag} {path}: the audio track cannot be decoded ({error.strerror})"
                    ) from error
                print(
                    f"warning: {flag} {path}: audio decoding stopped at {stopped:.2f} s ({error.strerror}); "
                    "using what came before",
                    file=sys.stderr,
                )
                ended, parts = True, converted(None)
            for samples in parts:
                total += len(samples)
                yield start, samples
