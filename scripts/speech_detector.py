"""Fit the detector of speech in music: python -m scripts.speech_detector --speech DIR --music FILE …

Writes checkpoints/speech_detector.npy, (385,) float32, which data_processing/audio/silence.py applies to the
Whisper features that drive the lips: 384 weights and a constant, whose score is higher without speech. It is a
logistic regression on clean recordings, in which pauses are found by their level, alone and mixed with music and
noise.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_processing.audio.features import extract_features
from data_processing.audio.silence import loudness, silent_frames, with_noise_floor
from data_processing.media.audio_io import SAMPLE_RATE, load_audio
from utils.bundled import SPEECH_DETECTOR
from utils.command_line import run_command
from utils.errors import MediaError, ParameterError
from utils.files import write_atomically

MIN_S, MAX_S = 4.5, 10  # of a recording that is used, and of its part that is used
MIN_RANGE_DB = 40  # between its loud and its quiet frames, else the level does not tell speech from pauses
PAUSES_S = (0.8, 1.2)  # of the recording's own noise, before and after it
NUM_MIXES = 3  # of a recording, besides the recording alone
SNR_DB = (-3, 20)  # of speech to music
RIDGE = 300
STEPS = 12  # of Newton's method
BEAT_S = 0.5
CHORDS = (0, 9, 5, 7)  # semitones of their roots
SCALE = (0, 2, 4, 7, 9)


def run(args: argparse.Namespace) -> None:
    music = [load_audio(path) for path in args.music]
    speeches = list(clean_recordings(args.speech))
    if not speeches:
        raise ParameterError("speech", f"no recording of {MIN_S} s or more with pauses in {args.speech}")
    features, silent = [], []
    for number, speech in enumerate(tqdm(speeches, unit="recording")):
        rng = np.random.default_rng(number)
        labels = silent_frames(speech)
        mixes = [speech]
        for mix in range(NUM_MIXES):
            tracks = [*music, made_music(len(speech), rng), pink_noise(len(speech), rng)]
            track = tracks[(number + mix) % len(tracks)]
            mixes.append(with_music(speech, track, rng.uniform(*SNR_DB), rng))
        for mixed in mixes:
            features.append(extract_features(with_noise_floor(mixed), "whisper")[: len(labels)])
            silent.append(labels)
    detector = fit(np.concatenate(features), np.concatenate(silent))
    write_atomically(SPEECH_DETECTOR, lambda file: np.save(file, detector))
    print(f"{SPEECH_DETECTOR}: {len(speeches)} recordings, {sum(map(len, silent))} frames")


def recordings(folder: Path) -> Iterator[np.ndarray]:
    """The first MAX_S of all recordings in a folder."""
    for path in sorted(folder.iterdir()):
        try:
            waveform = load_audio(path) if path.is_file() else np.zeros(0, np.float32)
        except MediaError:  # no media file, or a video without audio
            continue
        yield waveform[: MAX_S * SAMPLE_RATE]


def clean_recordings(folder: Path) -> Iterator[np.ndarray]:
    """The recordings in a folder whose level tells speech from pauses, between two more pauses."""
    for waveform in recordings(folder):
        if len(waveform) < MIN_S * SAMPLE_RATE:
            continue
        quiet, loud = np.percentile(loudness(waveform), (3, 95))
        if loud < quiet * 10 ** (MIN_RANGE_DB / 20):
            continue
        rng = np.random.default_rng(0)
        before, after = (max(quiet, 1e-5) * rng.standard_normal(round(s * SAMPLE_RATE)) for s in PAUSES_S)
        yield np.concatenate([before, waveform, after]).astype(np.float32)


def with_music(speech: np.ndarray, music: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Speech (N,) with a random part of music (M,), than which the spoken frames are louder by `snr_db`."""
    music = np.tile(music, -(-len(speech) // len(music)))
    start = rng.integers(len(music) - len(speech) + 1)
    music = music[start : start + len(speech)]
    spoken = loudness(speech)[~silent_frames(speech)]
    gain = np.sqrt(np.square(spoken).mean() / np.square(music).mean()) * 10 ** (-snr_db / 20)
    mixed = speech + gain * music
    return (mixed / max(1, np.abs(mixed).max())).astype(np.float32)


def made_music(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Drums, plucked chords and a melody with vibrato, (N,) at 16 kHz."""
    beat = round(BEAT_S * SAMPLE_RATE)
    times = np.arange(2 * beat) / SAMPLE_RATE
    hat = np.roll(np.exp(-60 * times) * rng.standard_normal(len(times)), beat // 2)
    drums = 0.6 * np.exp(-18 * times) * np.sin(2 * np.pi * (50 * times + 2 - 2 * np.exp(-30 * times))) + 0.15 * hat
    track = np.zeros(num_samples + 2 * beat)

    def tone(semitones: int, num_harmonics: int, vibrato: float) -> np.ndarray:
        phase = 2 * np.pi * 110 * 2 ** (semitones / 12) * times + vibrato * np.sin(2 * np.pi * 5 * times)
        return sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, num_harmonics + 1))

    for number, start in enumerate(range(0, num_samples, beat)):
        root = CHORDS[number // 4 % len(CHORDS)]
        chord = sum(tone(root + third, 6, 0) for third in ((0, 4, 7) if number % 2 == 0 else (0,)))
        melody = tone(root + 12 + int(rng.choice(SCALE)), 8, 0.9) * np.minimum(1, 30 * times) * (times < 0.45)
        track[start : start + len(times)] += drums + 0.12 * np.exp(-2.5 * times) * chord + 0.1 * melody
    return track[:num_samples]


def pink_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """(N,): noise of equal power in all octaves."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), num_samples)


def fit(features: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """Logistic regression of (T,) bool on (T, D): (D + 1,) float32, weights and a constant."""
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    x = np.append((features - mean) / deviation, np.ones((len(features), 1)), axis=1)
    penalty = RIDGE * np.diag(np.append(np.ones(features.shape[1]), 0))
    weights = np.zeros(x.shape[1])
    for _ in range(STEPS):
        probability = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (probability - silent) + penalty @ weights
        curvature = (x * (probability * (1 - probability))[:, None]).T @ x + penalty
        weights -= np.linalg.solve(curvature, slope)
    scaled = weights[:-1] / deviation
    return np.append(scaled, weights[-1] - scaled @ mean).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder with recordings or videos of speech")
    parser.add_argument("--music", type=Path, nargs="+", default=[], help="music without voices")
    run_command(parser, run)


if __name__ == "__main__":
    main()
