"""Lag between lips and audio track for all audio codecs and containers: python -m tests.tools.audio_lags

Writes three seconds of babble by every audio encoder into every container that takes it, with a video if possible,
and prints a Markdown table of two lags by cross-correlation: of what drives the lips (`read_audio`) after what
was encoded, and of what the written video plays after what drives the lips. The latter is the largest of a plain
decode of an .mp4, an .mov and an .mkv of VideoWriter.
"""

import argparse
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import groupby
from math import gcd
from pathlib import Path

import av
import numpy as np
from scipy.signal import resample_poly
from tqdm import tqdm

from data_processing.media.audio_io import SAMPLE_RATE, load_audio
from data_processing.media.video_reader import first_frame_time
from data_processing.media.video_writer import OUTPUT_SUFFIXES
from tests.support.media import babble
from tests.support.numbered_media import SIZE, numbered, write_with
from utils.command_line import run_command
from utils.errors import AudioError

SECONDS = 3
# fmt: off
CONTAINERS = [
    "3gp", "aac", "ac3", "aiff", "amr", "au", "avi", "caf", "eac3", "flac", "flv", "m2ts", "m4a", "mka", "mkv",
    "mov", "mp2", "mp3", "mp4", "mpg", "mxf", "ogg", "opus", "tta", "ts", "w64", "wav", "webm", "wma", "wmv", "wv",
]
# fmt: on
VIDEO_CODECS = {"webm": "libvpx", "mpg": "mpeg2video", "mxf": "mpeg2video", "3gp": "mpeg4", "flv": "flv"}
RATES_AND_LAYOUTS = [(48000, "mono"), (44100, "stereo"), (16000, "mono"), (22050, "mono"), (8000, "mono")]
NOT_COMPARABLE = {"anull", "comfortnoise"}  # encoders that keep nothing of the waveform
MIN_CORRELATION = 0.2  # below it, it was not the codec of the container
COLUMNS = ["codec", "containers", "lips after the waveform, ms", "result after the lips, ms"]


def encoders() -> Iterator[str]:
    """Names of all audio encoders."""
    for name in sorted(av.codecs_available):
        try:
            if av.Codec(name, "w").type == "audio" and name not in NOT_COMPARABLE:
                yield name
        except av.codec.codec.UnknownCodecError:  # a decoder
            continue


def write(path: Path, codec: str, rate: int, layout: str, waveform: np.ndarray, with_video: bool) -> None:
    """Encode (N,) samples at 16 kHz. Raises FFmpegError or ValueError if codec and container do not fit."""
    with av.open(str(path), "w") as container:
        video = None
        if with_video:
            video = container.add_stream(VIDEO_CODECS.get(path.suffix[1:], "mpeg4"), rate=25)
            video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2"})
        audio.bit_rate = 0 if codec.startswith(("pcm", "adpcm")) else 128_000 if rate > 16000 else 12_200
        packets = []
        for index in range(25 * SECONDS if video else 0):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(index)), format="rgb24")
            image.pts, image.time_base = index, Fraction(1, 25)
            packets += video.encode(image)
        packets += video.encode(None) if video else []
        formats = audio.codec_context.codec.audio_formats
        resampler = av.AudioResampler(formats[0].name if formats else "s16", layout, rate)
        frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            packets += audio.encode(part)
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            container.mux(packet)


def played(path: Path) -> np.ndarray:
    """What a player plays from the first video frame on, by time stamps alone: (N,) at 16 kHz."""
    origin = first_frame_time(path)
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        waveform = np.zeros(rate * (SECONDS + 1))
        for frame in container.decode(audio=0):
            start = round((frame.time - origin) * rate)
            samples = frame.to_ndarray().mean(axis=0)[max(0, -start) :]
            waveform[max(0, start) :][: len(samples)] = samples
    common = gcd(rate, SAMPLE_RATE)
    return resample_poly(waveform, SAMPLE_RATE // common, rate // common)


def lag_ms(waveform: np.ndarray, later: np.ndarray) -> tuple[float, float]:
    """By how much `later` is after `waveform`, both (N,) at 16 kHz, and their correlation there."""
    length = min(len(waveform), len(later))
    first, second = (np.fft.rfft(samples[:length], 2 * length) for samples in (waveform, later))
    correlation = np.fft.irfft(second * first.conj())
    norm = np.linalg.norm(waveform[:length]) * np.linalg.norm(later[:length])
    best = int(correlation.argmax())
    samples = best if best < length else best - 2 * length
    return 1000 * samples / SAMPLE_RATE, float(correlation[best] / norm) if norm else 0.0


def measure(path: Path, codec: str, waveform: np.ndarray) -> tuple[float, float] | None:
    """Lag in ms of the lips after (N,) samples written to `path`, and the largest of the results after the lips.

    None if the encoder does not fit the container: some containers take what nobody can read.
    """
    for rate, layout in RATES_AND_LAYOUTS:
        for with_video in (True, False):
            try:
                write(path, codec, rate, layout, waveform, with_video)
            except (av.error.FFmpegError, ValueError):
                continue
            try:
                lips = load_audio(path)
            except AudioError:
                return None
            late, correlation = lag_ms(waveform, lips)
            if correlation < MIN_CORRELATION:
                return None
            outputs = [path.with_name(f"{path.stem}_dubbed{suffix}") for suffix in sorted(OUTPUT_SUFFIXES)]
            lags = [
                lag_ms(lips, played(write_with(output, 25 * SECONDS, audio_paths=[path])))[0] for output in outputs
            ]
            return late, max(lags, key=abs)
    return None


def run(args: argparse.Namespace) -> None:
    """Measure all codecs and containers."""
    waveform = babble(SECONDS, seed=1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for codec in tqdm(list(encoders()), unit="codec"):
            found = []
            for container in CONTAINERS:
                lags = measure(Path(folder, f"{codec}.{container}"), codec, waveform)
                if lags:
                    found.append((round(lags[0], 1) + 0.0, round(lags[1], 1) + 0.0, container))
            for lags, group in groupby(sorted(found), lambda row: row[:2]):
                rows.append([codec, ", ".join(row[2] for row in group), *map(str, lags)])
    for row in [COLUMNS, ["---"] * len(COLUMNS), *rows]:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    run_command(parser, run)


if __name__ == "__main__":
    main()
