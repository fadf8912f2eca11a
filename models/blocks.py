"""Convolution blocks shared by the networks, in one and two dimensions."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
# Running statistics over about the last hundred batches. With PyTorch's default, about ten, they would come from a
# few dozen identities on a small machine, and the trained generator would depend on these identities.
NORM = {1: partial(nn.BatchNorm1d, momentum=0.02), 2: partial(nn.BatchNorm2d, momentum=0.02)}


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU; the size is kept at stride 1 and halved (rounded up) at stride 2.

    `dims` is 2 for images (B, C, H, W) and 1 for sequences (B, C, T).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dims: int = 2
    ) -> None:
        super().__init__()
        self.conv = CONV[dims](in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self.norm = NORM[dims](out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)))


class UpBlock(ConvBlock):
    """Nearest-neighbour upsampling by two, then a `ConvBlock`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Pre-activation residual block: x + two times (batch norm, ReLU, convolution of kernel size 3)."""

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.norm1 = NORM[dims](channels)
        self.conv1 = CONV[dims](channels, channels, 3, padding=1)
        self.norm2 = NORM[dims](channels)
        self.conv2 = CONV[dims](channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))
