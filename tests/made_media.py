"""Small media made on the spot for tests: every function writes one file, quickly and always the same, and returns
its path. They write with PyAV directly, so that the project's own reader and writer are tested against it.
"""

import wave
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from scipy.signal import butter, sosfiltfilt

SAMPLE_RATE = 16000


def talking_portrait(
    path: Path,
    num_frames: int = 25,
    fps: float | Fraction = 25,
    size: tuple[int, int] = (256, 256),
    with_audio: bool = True,
) -> Path:
    """A face (found by dlib) that sways a little and whose mouth follows the loudness of its speech-like sound.

    `size` is (width, height), both even; the face is about a third of the height.
    """
    waveform = speech_like(num_frames / float(fps), seed=0)
    times = np.arange(num_frames) / float(fps)
    loudness = np.interp(times, np.arange(len(waveform)) / SAMPLE_RATE, _smooth(np.abs(waveform)))
    openings = loudness / max(loudness.max(), 1e-6)
    frames = (_portrait(time, opening, size) for time, opening in zip(times, openings, strict=True))
    return _write_mp4(path, frames, fps, size, waveform if with_audio else None)


def silent_video_without_audio(path: Path, num_frames: int = 25) -> Path:
    """`talking_portrait` without a sound track."""
    return talking_portrait(path, num_frames, with_audio=False)


def no_face_video(path: Path, num_frames: int = 10, size: tuple[int, int] = (256, 256)) -> Path:
    """A drifting colour gradient, without sound."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    frames = (
        np.rint(255 * np.stack([x, y, np.full_like(x, index / num_frames)], axis=-1)).astype(np.uint8)
        for index in range(num_frames)
    )
    return _write_mp4(path, frames, 25, size, None)


def text_file(path: Path) -> Path:
    """Words, whatever the suffix of `path` says."""
    path.write_text("This is not a media file.\n" * 20)
    return path


def truncated_mp4(path: Path) -> Path:
    """The first half of an MP4, as an interrupted copy leaves it: the index at its end is missing."""
    talking_portrait(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def tone_wav(path: Path, seconds: float) -> Path:
    """A 440 Hz sine of amplitude 0.5, 16 kHz mono 16 bit."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return _write_wav(path, 0.5 * np.sin(2 * np.pi * 440 * times))


def speech_like_wav(path: Path, seconds: float, seed: int = 0) -> Path:
    """`speech_like` as 16 kHz mono 16 bit."""
    return _write_wav(path, speech_like(seconds, seed))


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise of the voice's band (200 to 4000 Hz) in bursts of syllable length: (N,) in [-1, 1] at 16 kHz."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE)
    # Half a second more than asked, so that even the shortest request is longer than the filter's run-in.
    noise = rng.standard_normal(num_samples + SAMPLE_RATE // 2)
    voice = sosfiltfilt(butter(4, (200, 4000), "bandpass", fs=SAMPLE_RATE, output="sos"), noise)[:num_samples]
    loudness, times = np.zeros(num_samples), np.arange(num_samples) / SAMPLE_RATE
    middle = 0.1
    while middle < seconds:
        loudness += rng.uniform(0.4, 1) * np.exp(-(((times - middle) / 0.05) ** 2))
        middle += rng.uniform(0.15, 0.35)
    return np.clip(0.25 * voice / voice.std() * loudness, -1, 1)


def _smooth(values: np.ndarray) -> np.ndarray:
    window = np.hanning(SAMPLE_RATE // 20)
    return np.convolve(values, window / window.sum(), "full")[len(window) // 2 :][: len(values)]


def _portrait(time_s: float, opening: float, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: NASA's portrait of Eileen Collins around the head, the lower lip and chin let down."""
    width, height = size
    scale = 256 / height  # picture pixels per output pixel
    picture = skimage.data.astronaut()
    x = 224 + (np.arange(width) - width / 2) * scale + 3 * np.sin(2 * np.pi * 0.7 * time_s)
    y = np.arange(height) * scale + 2 * np.sin(2 * np.pi * 0.9 * time_s)
    # Rows: upper lip and above stay, lower lip to chin go down, the collar stays again.
    down = 6 * opening
    y = np.interp(y, [-99, 144, 150 + down, 178 + down, 200, 600], [-99, 144, 150, 178, 200, 600])
    map_x, map_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    frame = cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    in_mouth = ((map_x - 223) / 17) ** 2 + ((map_y - 147) / 3.5) ** 2 < 1
    frame[in_mouth] = (frame[in_mouth] * (1 - 0.8 * opening)).astype(np.uint8)
    return frame


def _write_mp4(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    size: tuple[int, int],
    waveform: np.ndarray | None,
) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.options = {"crf": "18", "preset": "ultrafast"}
        audio = None
        if waveform is not None:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            sound = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
            sound.sample_rate = SAMPLE_RATE
            sound.pts, sound.time_base = 0, Fraction(1, SAMPLE_RATE)  # else AAC's run-in of 64 ms delays it
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def _write_wav(path: Path, waveform: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(waveform * 32767).astype("<i2").tobytes())
    return path


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Vowel-like sound: a 120 Hz pulse train through moving resonances, with pauses. (N,) in [-1, 1]."""
    from scipy.signal import lfilter

    rng = np.random.default_rng(seed)
    pieces = []
    while sum(map(len, pieces)) < seconds * 16000:
        n = int(rng.integers(1600, 4800))
        source = (np.arange(n) % 133 == 0) * 1.0 + 0.01 * rng.standard_normal(n)
        for low, high in [(250, 800), (900, 2300), (2400, 3200)]:
            radius, angle = 0.97, 2 * np.pi * rng.uniform(low, high) / 16000
            source = lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], source)
        pieces.append(source / np.abs(source).max() * 0.5 * np.hanning(n) * (rng.random() > 0.2))
    return np.concatenate(pieces)[: int(seconds * 16000)].astype(np.float32)
