"""Wav2Lip's generator (Prajwal et al., "A lip sync expert is all you need", 2020), at 96 pixels as published and at
larger sizes: the baseline of the paper's Table 1."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from data_processing.audio_features import MEL_BINS, MEL_COLUMNS

DOUBLINGS = {96: 0, 192: 1, 384: 2}  # of the published size


@dataclass(frozen=True)
class Wav2LipConfig:
    """face_size: side of the square faces: 96, 192 or 384."""

    face_size: int = 96


class Wav2Lip(nn.Module):
    """Draws a face whose lips follow the sound from the same face with its lower half masked, and a reference.

    Names and shapes at 96 pixels are those of the authors' release. Every doubling of the size adds one stage at
    the outside of encoder and decoder.
    """

    def __init__(self, config: Wav2LipConfig) -> None:
        super().__init__()
        self.config = config
        doublings = DOUBLINGS[config.face_size]
        down = ((32, 2), (64, 3), (128, 2), (256, 2), (512, 1))  # channels, residual convolutions
        up = (
            (1024, 512),
            (768, 384),
            (512, 256),
            (320, 128),
            (160, 64),
        )  # channels in, with the encoder's, and out
        self.face_encoder_blocks = nn.ModuleList(
            [
                nn.Sequential(_Conv(6, 16, 7, padding=3)),
                *(_stage(_Conv(16, 16, stride=2), 1) for _ in range(doublings)),
                *(_stage(_Conv(width // 2, width, stride=2), depth) for width, depth in down),
                nn.Sequential(_Conv(512, 512, padding=0), _Conv(512, 512, 1, padding=0)),
            ]
        )
        self.audio_encoder = nn.Sequential(
            *_stage(_Conv(1, 32), 2),
            *_stage(_Conv(32, 64, stride=(3, 1)), 2),
            *_stage(_Conv(64, 128, stride=3), 2),
            *_stage(_Conv(128, 256, stride=(3, 2)), 1),
            _Conv(256, 512, padding=0),
            _Conv(512, 512, 1, padding=0),
        )
        self.face_decoder_blocks = nn.ModuleList(
            [
                nn.Sequential(_Conv(512, 512, 1, padding=0)),
                _stage(_UpConv(1024, 512, padding=0), 1),
                *(_stage(_UpConv(wide, width, stride=2, output_padding=1), 2) for wide, width in up),
                *(_stage(_UpConv(64 + 16, 64, stride=2, output_padding=1), 1) for _ in range(doublings)),
            ]
        )
        self.output_block = nn.Sequential(_Conv(80, 32), nn.Conv2d(32, 3, 1), nn.Sigmoid())

    def forward(self, faces: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Draw faces.

        Args:
            faces: (B, 6, S, S) in [0, 1], S = face_size; first the face with its lower half set to 0, then the
                reference. BGR for the authors' weights, RGB for our own.
            mel: (B, 1, 80, 16), 0.2 s of mel spectrogram from the frame on.

        Returns:
            (B, 3, S, S) in [0, 1].

        Raises:
            ValueError: a shape is not as above.
        """
        size = self.config.face_size
        if faces.shape[1:] != (6, size, size) or mel.shape != (len(faces), 1, MEL_BINS, MEL_COLUMNS):
            raise ValueError(f"expected (B, 6, {size}, {size}) and (B, 1, 80, 16), got {faces.shape}, {mel.shape}")
        skipped = []
        x = faces
        for stage in self.face_encoder_blocks:
            x = stage(x)
            skipped.append(x)
        x = self.audio_encoder(mel)
        for stage in self.face_decoder_blocks:
            x = torch.cat([stage(x), skipped.pop()], dim=1)
        return self.output_block(x)


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU; with `residual` what came in is added before the ReLU."""

    conv: type[nn.Module] = nn.Conv2d

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, residual: bool = False, **options
    ) -> None:
        super().__init__()
        options = {"padding": 1} | options
        self.conv_block = nn.Sequential(
            self.conv(in_channels, out_channels, kernel_size, **options), nn.BatchNorm2d(out_channels)
        )
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.conv_block(x)
        return F.relu(found + x if self.residual else found)


class _UpConv(_Conv):
    """Transposed convolution, batch norm, ReLU."""

    conv = nn.ConvTranspose2d


def _stage(first: _Conv, repeats: int) -> nn.Sequential:
    """A convolution and `repeats` residual ones of its width."""
    width = first.conv_block[1].num_features
    return nn.Sequential(first, *(_Conv(width, width, residual=True) for _ in range(repeats)))
