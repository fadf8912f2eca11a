"""Synthetic images and clips for tests of evaluation."""

from pathlib import Path

import numpy as np
import torch

from data_processing.dataset import Clip
from data_processing.media.video_reader import read_frames
from models.crop_layout import crop_size
from tests.support.media import speech_like, write_video

MOUTH_SIZE = 32


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform noise in [0, 1) of this shape."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def synthetic_clip(name: str, speaker: str, num_frames: int, seed: int = 0) -> Clip:
    """A clip of noise frames. Column 0 of the audio features is t / 255, so that a frame can show it exactly."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, *crop_size(MOUTH_SIZE), 3), np.uint8)
    features = np.zeros((num_frames, 29), np.float32)
    features[:, 0] = np.arange(num_frames) / 255
    return Clip(name, speaker, frames, features, np.zeros((len(frames), 68, 2), np.float32))


def video_with_late_last_frame(path: Path, clip: Path) -> Path:
    """15 frames of a video with audio, and one more frame an hour after them."""
    frames = list(read_frames(clip))[:16]
    times = np.append(np.arange(15) / 25, 3600)
    return write_video(path, frames, times=times, waveforms=[speech_like(0.6, 0)])
