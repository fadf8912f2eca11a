"""Small configurations, clips and comparisons for tests of training."""

from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

from data_processing.dataset import Clip
from models.blocks import ConvBlock, ResBlock
from models.dinet import DINet

TINY = """
mouth_size: 32
batch_size: 2
max_steps: 4
warmup_steps: 2
loss_weights: {pixel: 1.0, perceptual: 10.0, adversarial: 0.0}
precision: fp32
log_every: 1
validate_every: 3
image_every: 2
save_every: 2
val_frames: 2
"""
ADVERSARIAL_BF16 = (
    TINY
    + """
mouth_size: 64
loss_weights: {pixel: 0.0, perceptual: 10.0, adversarial: 1.0}
adversarial_start: 1
precision: bf16
speaker_sampling_exponent: 0.5
"""
)
TINY_SYNCNET = """
mouth_size: 32
batch_size: 4
max_steps: 4
warmup_steps: 2
precision: fp32
shape_warmup_steps: 2
log_every: 1
validate_every: 3
save_every: 2
"""


class SmallGenerator(torch.nn.Module):
    """The interface of DINet, with batch norms over images and over audio: a step takes a hundredth of the time."""

    mask = staticmethod(DINet.mask)

    def __init__(self, audio_dim: int, num_references: int) -> None:
        super().__init__()
        self.images = ConvBlock(3 + 3 * num_references, 8, 3)
        self.audio_encoder = ConvBlock(audio_dim, 8, 3, dims=1)
        self.block = ResBlock(8)
        self.last = torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(
        self, masked_source: torch.Tensor, references: torch.Tensor, audio_window: torch.Tensor
    ) -> torch.Tensor:
        references = references.repeat_interleave(len(masked_source) // len(references), dim=0)
        code = self.audio_encoder(audio_window).mean(dim=2)[..., None, None]
        images = self.images(torch.cat([masked_source, references], dim=1))
        return self.last(self.block(images + code)).sigmoid().float()


def write_recipe(folder: Path, text: str) -> Path:
    """A configuration file with this text."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def assert_same(one: object, other: object, where: str = "state") -> None:
    """Assert that nested dicts and lists are bit-identical."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def tensorboard_events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={SCALARS: 0, IMAGES: 0}).Reload()


def speaking_clip(number: int, num_frames: int, audio_delay: int = 0) -> Clip:
    """A clip at S = 32 whose mouth brightness is the loudness of its audio, delayed by `audio_delay` frames."""
    rng = np.random.default_rng(number)
    loudness = np.convolve(rng.normal(size=num_frames + 40), np.ones(3) / 3, "same")
    brightness, delayed = loudness[20:][:num_frames], loudness[20 - audio_delay :][:num_frames]
    frames = np.full((num_frames, 52, 40, 3), 128.0) + 50 * brightness[:, None, None, None]
    features = np.repeat(delayed[:, None], 29, axis=1) + 0.05 * rng.normal(size=(num_frames, 29))
    return Clip(
        f"clip{number}",
        f"speaker{number}",
        frames.clip(0, 255).astype(np.uint8),
        features.astype(np.float32),
        rng.normal(size=(num_frames, 68, 2)).astype(np.float32),
    )
