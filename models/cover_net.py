"""The network that finds what covers a mouth: hands, microphones, cups, captions (dubbing/covers.py uses it)."""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.blocks import ConvBlock, ResBlock
from models.crop_layout import crop_size, mouth_margin_top
from utils.errors import CheckpointError, error_reason

COVER_SIZE = 64  # mouth size S of its crops
REACH = 2  # pixels by which a face in two crops is apart
NUM_VIEWS = 3  # reference frames that it compares a source frame with
TOP = mouth_margin_top(COVER_SIZE)  # it sees the rows of the crop from here on, a square
SIDE = crop_size(COVER_SIZE)[0] - TOP


class CoverNet(nn.Module):
    """U-Net that marks the pixels of a source frame that do not belong to the face in the reference frames."""

    def __init__(self) -> None:
        super().__init__()
        channels = (16, 32, 64, 64)
        self.entry = ConvBlock(4 * 3 * (2 + NUM_VIEWS), channels[0], 3)
        pairs = list(pairwise(channels))
        self.blocks = nn.ModuleList(ResBlock(width) for width in channels)
        self.down = nn.ModuleList(ConvBlock(wide, narrow, 3, stride=2) for wide, narrow in pairs)
        self.up = nn.ModuleList(nn.Conv2d(narrow, wide, 1) for wide, narrow in pairs)
        self.merge = nn.ModuleList(ResBlock(wide) for wide, _ in pairs)
        self.exit = nn.Conv2d(channels[0], 4, 3, padding=1)

    def forward(self, source: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Logits of being covered.

        Args:
            source: (B, 3, SIDE, SIDE) RGB in [0, 1], rows TOP … of the face crops at S = COVER_SIZE.
            references: (B, 3 · NUM_VIEWS, SIDE, SIDE), the same of reference frames.

        Returns:
            (B, SIDE, SIDE).
        """
        images = torch.cat([source - 0.5, references - 0.5, _distance(source, references)], dim=1)
        x = self.entry(F.pixel_unshuffle(images, 2))
        x = self.blocks[0](x)
        skips = [x]
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            skips.append(block(down(skips[-1])))
        x = skips.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            skip = skips.pop()
            x = merge(F.interpolate(up(x), skip.shape[2:], mode="bilinear", align_corners=False) + skip)
        return F.pixel_shuffle(self.exit(x), 2)[:, 0]


def _distance(source: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """How far the source (B, 3, H, W) is outside the range of each colour that the nearest of the references
    (B, 3 · NUM_VIEWS, H, W) has within REACH pixels: (B, 3, H, W)."""
    window = 2 * REACH + 1
    highest = F.max_pool2d(references, window, 1, REACH).unflatten(1, (NUM_VIEWS, 3))
    lowest = -F.max_pool2d(-references, window, 1, REACH).unflatten(1, (NUM_VIEWS, 3))
    outside = torch.maximum(source[:, None] - highest, lowest - source[:, None]).relu()
    return 4 * outside.amin(dim=1)  # small numbers: about as large as the images


def load_cover_net(path: Path, device: torch.device) -> CoverNet:
    """Load a file of scripts/train_covers.py, in evaluation mode.

    Raises:
        CheckpointError: it cannot be read, or is not such a file.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read: {error_reason(error)}") from None
    network = CoverNet()
    expected = {name for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    if tensors.keys() != expected:  # without the counters of the batch norms, which only training uses
        raise CheckpointError(path, "is not a network that finds covers")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    return network.to(device).eval()
