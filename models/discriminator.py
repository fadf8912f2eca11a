"""The patch discriminator, for frames and for five-frame clips (paper, "Loss function")."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn


class Discriminator(nn.Module):
    """Scores every patch of an image: near 1 for real, near 0 for generated.

    Args:
        in_channels: 3 for the frame discriminator, 15 for the clip discriminator.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        widths = [in_channels, 128, 256, 256, 256]
        # Without padding and norms, so the score of a patch depends on its content only.
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 4) for before, after in itertools.pairwise(widths))
        self.score = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, H, W), RGB in [0, 1] -> scores (B, 1, H', W'), H' about H/8 and W' about W/8."""
        x = images
        for i, conv in enumerate(self.convs):
            x = F.leaky_relu(conv(x), 0.2)
            if i < len(self.convs) - 1:
                x = F.avg_pool2d(x, 2)
        return self.score(x)
