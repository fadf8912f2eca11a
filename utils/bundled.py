"""Paths of the files that ship with this repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUNDLED_GENERATOR = ROOT / "checkpoints" / "dinet_64.safetensors"
BUNDLED_SYNCNET = ROOT / "checkpoints" / "syncnet_32.safetensors"
CLOSED_LIPS = ROOT / "checkpoints" / "closed_lips.npy"  # written by scripts/closed_lips.py
SPEECH_DETECTOR = ROOT / "checkpoints" / "speech_detector.npy"  # written by scripts/speech_detector.py
EXAMPLE_VIDEO = ROOT / "examples" / "portrait.mp4"
EXAMPLE_AUDIO = ROOT / "examples" / "speech.wav"
