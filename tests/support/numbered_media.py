"""Small videos whose frames show their number as black and white stripes, and audio tracks with a click."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_processing.media.video_writer import VideoWriter

SIZE = (64, 48)  # width, height
BITS = 8


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame that shows its number: bit b is the b-th of eight vertical stripes, from the left."""
    width, height = size
    bits = number >> (np.arange(width) * BITS // width) & 1
    return np.broadcast_to(np.where(bits, 235, 20).astype(np.uint8)[None, :, None], (height, width, 3))


def number_of(frame: np.ndarray) -> int:
    """The number that a frame of `numbered` shows."""
    stripes = frame[len(frame) // 4 : -len(frame) // 4].mean(axis=(0, 2)).reshape(BITS, -1).mean(axis=1)
    return int(((stripes > 128) << np.arange(BITS)).sum())


def numbers(frames: Iterable[np.ndarray]) -> list[int]:
    return [number_of(frame) for frame in frames]


def write_numbered(
    path: Path,
    num_frames: int = 60,
    fps: float | Fraction = 25,
    times: np.ndarray | None = None,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """A video with frame k at k / fps seconds, or at times[k] seconds (rounded to milliseconds)."""
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = options
        time_base = 1 / rate if times is None else Fraction(1, 1000)
        if times is not None:
            stream.codec_context.time_base = time_base
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index)), format="rgb24")
            frame.pts, frame.time_base = index if times is None else round(times[index] * 1000), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def click(rate: int, at: float, seconds: float = 2.0) -> np.ndarray:
    """(N,) float32: silence except for 10 ms of a tone at `at` seconds."""
    waveform = np.zeros(round(rate * seconds), np.float32)
    length = rate // 100
    waveform[round(at * rate) :][:length] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(length) / rate)
    return waveform


def write_audio(
    path: Path,
    codec: str,
    rate: int = 44100,
    num_frames: int = 0,
    audio_start: float = 0.0,
    video_start: float = 0.0,
) -> Path:
    """2 s of audio with a click 0.5 s after its start; with `num_frames`, also a numbered 25 fps video."""
    with av.open(str(path), "w") as container:
        video = None
        if num_frames:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height = SIZE
            video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout="mono")
        for index in range(num_frames):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index)), format="rgb24")
            image.pts, image.time_base = index + round(video_start * 25), Fraction(1, 25)
            container.mux(video.encode(image))
        if video:
            container.mux(video.encode(None))
        waveform = click(rate, at=0.5)
        resampler = av.AudioResampler(audio.format.name, "mono", rate)
        for start in range(0, len(waveform), 1024):
            data = np.ascontiguousarray(waveform[None, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(data, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(audio_start * rate) + start
            for part in resampler.resample(frame):
                container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


def click_time(path: Path) -> float:
    """Time of the click in seconds after the first video frame."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        origin = float(video.start_time * video.time_base)
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.2)
            if len(loud):
                return frame.time + loud[0] / frame.sample_rate - origin
    raise AssertionError(f"no click in {path}")


def write_with(path: Path, num_frames: int, **options) -> Path:
    """A numbered video written by VideoWriter with these options."""
    with VideoWriter(path, *SIZE, **options) as writer:
        for index in range(num_frames):
            writer.write(numbered(index))
    return path


def open_files() -> set[str]:
    """Paths of the open files of this process (Linux)."""
    return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


def decoded(path: Path) -> list[tuple[Fraction, bytes]]:
    """Time in seconds and pixel data of every frame."""
    with av.open(str(path)) as container:
        return [(frame.pts * frame.time_base, frame.to_ndarray().tobytes()) for frame in container.decode(video=0)]
