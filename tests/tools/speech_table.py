"""How silence is found in speech with music: python -m tests.tools.speech_table FOLDER … --music FILE …

Mixes the clean recordings of folders (scripts/speech_detector.py: clean_recordings) with music. Prints, in
Markdown, how many of the frames that are speech by the level of the clean recording are taken for silence (false),
and how many of its silent frames are not (missed), in percent, for

- level: SILENCE_DB below the loud frames;
- level or detector: the same, or no speech by the detector on the features, as in a dub;
- silero-vad, whose probability of speech is below 0.5 or 0.3, and WebRTC's detector in its strictest mode, unless
  --level-only is given. They need the packages silero-vad, onnxruntime and webrtcvad-wheels.

Below the table, what the detector changes in all recordings, clean or not, without music. In the table, the frame
before and the two after each change between speech and silence do not count. The last column is processor
time in ms for a second of audio, without that of the features, which a dub needs anyway.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_processing.audio.features import extract_features
from data_processing.audio.silence import MIN_SILENCE, silent_frames, with_noise_floor
from data_processing.media.audio_io import SAMPLE_RATE, load_audio
from data_processing.media.video_reader import FPS
from scripts.speech_detector import clean_recordings, recordings, with_music
from utils.command_line import run_command

SNR_DB = (20, 10, 5, 0)  # of speech to music
SILERO_SAMPLES, WEBRTC_SAMPLES = 512, 320  # of a block
Detector = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (N,), (T, 384) -> (N // 640,) bool: silence


def run(args: argparse.Namespace) -> None:
    music = [load_audio(path) for path in args.music]
    detectors = all_detectors(args.level_only)
    counts = {name: defaultdict(lambda: np.zeros(4, int)) for name in detectors}
    seconds = dict.fromkeys(detectors, 0.0)
    total_s = 0.0
    speeches = [speech for folder in args.folders for speech in clean_recordings(folder)]
    for number, speech in enumerate(speeches):
        silent = silent_frames(speech)
        counted = ~near_changes(silent)
        for snr_db in (None, *SNR_DB):
            rng = np.random.default_rng(number)
            mixed = speech if snr_db is None else with_music(speech, music[number % len(music)], snr_db, rng)
            features = extract_features(with_noise_floor(mixed), "whisper")
            total_s += len(mixed) / SAMPLE_RATE
            for name, detect in detectors.items():
                started = time.process_time()
                found = detect(mixed, features)
                seconds[name] += time.process_time() - started
                spoken = ~silent & counted
                false, missed = found & spoken, ~found & silent & counted
                numbers = false.sum(), spoken.sum(), missed.sum(), (silent & counted).sum()
                counts[name][snr_db] += numbers
    print(f"{len(speeches)} recordings, {total_s:.0f} s with all mixtures; false / missed in %\n")
    print("| | alone |", *(f"{snr_db} dB |" for snr_db in SNR_DB), "ms/s |")
    print("|---|---|" + "---|" * (len(SNR_DB) + 1))
    for name, found in counts.items():
        shares = ((false / spoken, missed / silent) for false, spoken, missed, silent in found.values())
        cells = (f"{100 * false:.1f} / {100 * missed:.1f}" for false, missed in shares)
        print(f"| {name} |", *(f"{cell} |" for cell in cells), f"{1000 * seconds[name] / total_s:.1f} |")

    if not args.level_only:
        print(as_recorded([waveform for folder in args.folders for waveform in recordings(folder)], detectors))


def as_recorded(waveforms: list[np.ndarray], detectors: dict[str, Detector]) -> str:
    """One line about all recordings, without music but with the noise that they have."""
    by_level, by_detector, spoken, closed = [], [], 0, 0
    for waveform in waveforms:
        features = extract_features(with_noise_floor(waveform), "whisper")
        level, both, silero = (
            detectors[name](waveform, features) for name in ("level", "level or detector", "silero-vad, 0.5")
        )
        by_level += level.tolist()
        by_detector += both.tolist()
        spoken += (~silero).sum()
        closed += (~silero & both & ~level).sum()
    return (
        f"\nAs recorded, {len(waveforms)} files: {100 * np.mean(by_level):.1f} % of frames silent by level, "
        f"{100 * np.mean(by_detector):.1f} % by level or detector; of {spoken} frames that silero-vad, 0.5, calls "
        f"speech, the detector adds {closed} to silence"
    )


def near_changes(silent: np.ndarray) -> np.ndarray:
    """The frame before and the two after each change: (T,) bool."""
    changes = np.flatnonzero(np.diff(silent))
    near = np.zeros(len(silent), bool)
    for offset in range(3):
        near[np.minimum(changes + offset, len(silent) - 1)] = True
    return near


def all_detectors(level_only: bool) -> dict[str, Detector]:
    found: dict[str, Detector] = {
        "level": lambda waveform, features: silent_frames(waveform),
        "level or detector": lambda waveform, features: silent_frames(waveform, features=features),
    }
    if not level_only:
        found |= {"silero-vad, 0.5": silero(0.5), "silero-vad, 0.3": silero(0.3), "WebRTC": webrtc()}
    return found


def silero(threshold: float) -> Detector:
    import torch
    from silero_vad import load_silero_vad

    model = load_silero_vad(onnx=True)

    def detect(waveform: np.ndarray, features: np.ndarray) -> np.ndarray:
        model.reset_states()
        blocks = np.pad(waveform, (0, -len(waveform) % SILERO_SAMPLES)).reshape(-1, SILERO_SAMPLES)
        speech = [model(torch.from_numpy(block), SAMPLE_RATE).item() for block in blocks]
        return long_silence(np.repeat(speech, SILERO_SAMPLES) >= threshold, waveform)

    return detect


def webrtc() -> Detector:
    import webrtcvad

    model = webrtcvad.Vad(3)

    def detect(waveform: np.ndarray, features: np.ndarray) -> np.ndarray:
        samples = np.int16(np.clip(32768 * waveform, -32768, 32767))
        blocks = samples[: len(samples) // WEBRTC_SAMPLES * WEBRTC_SAMPLES].reshape(-1, WEBRTC_SAMPLES)
        speech = [model.is_speech(block.tobytes(), SAMPLE_RATE) for block in blocks]
        return long_silence(np.repeat(speech, WEBRTC_SAMPLES), waveform)

    return detect


def long_silence(speech: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """Frames in runs of MIN_SILENCE or more that have no sample of speech: (M,) bool -> (N // 640,) bool."""
    num_frames = len(waveform) * FPS // SAMPLE_RATE
    quiet = ~speech[: num_frames * SAMPLE_RATE // FPS].reshape(num_frames, -1).any(axis=1)
    return cv2.morphologyEx(np.uint8(quiet)[None], cv2.MORPH_OPEN, np.ones((1, MIN_SILENCE)))[0] > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="recordings or videos of speech")
    parser.add_argument("--music", type=Path, nargs="+", required=True, help="music without voices")
    parser.add_argument("--level-only", action="store_true", help="leave out other detectors")
    run_command(parser, run)


if __name__ == "__main__":
    main()
