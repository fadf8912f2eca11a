"""AdaAT: warps each feature channel by its own similarity transform (paper, "Deformation part")."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def warp_channels(
    features: torch.Tensor,
    scale: torch.Tensor,
    rotation: torch.Tensor,
    translation: torch.Tensor,
    *,
    edge_centres: bool = False,
) -> torch.Tensor:
    """Sample each channel at s·R(θ)·p + t for every output position p; positions outside read as zero.

    Positions are (x, y), normalised so that the map spans [-1, 1] in both directions, so that one transform
    means the same at every resolution (and a rotation of a map that is not square also shears it).

    Args:
        features: (B, C, H, W).
        scale: (B, C), 1 keeps the size, larger values shrink the content.
        rotation: (B, C), radians.
        translation: (B, C, 2), x and y, in halves of the map's width and height.
        edge_centres: place the output positions with ±1 at the centres of the edge samples, though they are
            read with ±1 at the outer edges, as everywhere else. Only the released checkpoint needs this.

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = features.shape
    x, y = (_positions(size, edge_centres, features) for size in (width, height))
    cos, sin = ((scale * part)[..., None] for part in (rotation.cos(), rotation.sin()))
    # The sum of a column term and a row term: four times as fast as affine_grid, which multiplies matrices.
    rows = torch.stack([-sin * y, cos * y], dim=2) + translation[..., None]
    grid = rows[..., None] + torch.stack([cos * x, sin * x], dim=2)[..., None, :]
    # A batch of one-channel images, because grid_sample uses one grid for all channels of an image.
    planes = features.reshape(batch * channels, 1, height, width)
    grid = grid.flatten(0, 1).movedim(1, -1)
    return F.grid_sample(planes, grid, align_corners=False).reshape(features.shape)


def _positions(size: int, edge_centres: bool, like: torch.Tensor) -> torch.Tensor:
    """Output positions along one side of a map: centres of samples, or with ±1 at those of the edge samples."""
    edge = 1 if edge_centres else 1 - 1 / size
    return torch.linspace(-edge, edge, size, dtype=like.dtype, device=like.device)


def released_channel_mix(num_channels: int) -> torch.Tensor:
    """(C, C) matrix of the channel blend that the released checkpoint was trained with.

    The authors sample a three-dimensional grid whose channel coordinate has the same mismatch as x and y
    (see `edge_centres`): channel k is read at k·C/(C−1) − 0.5, linearly between two neighbours, zero beyond
    the ends.
    """
    channel = torch.arange(num_channels, dtype=torch.float64)
    read_at = channel * num_channels / (num_channels - 1) - 0.5
    return (1 - (read_at[:, None] - channel).abs()).clamp(min=0).float()


class AdaAT(nn.Module):
    """Predicts one similarity transform per channel from a code and warps the features with it.

    Args:
        code_dim: length of the code.
        num_channels: channels of the features.
        official_grid: sample as in the training of the released checkpoint (DINetConfig.official_grid).
    """

    def __init__(self, code_dim: int, num_channels: int, official_grid: bool = False) -> None:
        super().__init__()
        self.official_grid = official_grid
        self.common = nn.Linear(code_dim, code_dim)
        self.scale = nn.Linear(code_dim, num_channels)
        self.rotation = nn.Linear(code_dim, num_channels)
        self.translation = nn.Linear(code_dim, 2 * num_channels)
        if official_grid:
            self.register_buffer("channel_mix", released_channel_mix(num_channels), persistent=False)

    def transforms(self, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Code (B, code_dim) to scale (B, C) in (0, 2), rotation (B, C) in radians within (-π, π) and
        translation (B, C, 2) in (-1, 1)."""
        hidden = F.relu(self.common(code))
        scale = 2 * self.scale(hidden).sigmoid()
        rotation = math.pi * self.rotation(hidden).tanh()
        translation = self.translation(hidden).tanh().unflatten(1, (-1, 2))
        return scale, rotation, translation

    def forward(
        self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Warp `features` (B, C, H, W) by the transforms of `code` (B, code_dim); keeps dtype and memory format.

        `source` is not used.
        """
        # In float32 at least, even under autocast: in bfloat16, positions would be off by a large fraction of a
        # sample, and 16-bit grid_sample is slower on CPUs.
        with torch.autocast(features.device.type, enabled=False):
            exact = torch.promote_types(features.dtype, torch.float32)
            planes = features.to(exact)
            if self.official_grid:
                planes = torch.einsum("kc,bchw->bkhw", self.channel_mix, planes)
            warped = warp_channels(planes, *self.transforms(code.to(exact)), edge_centres=self.official_grid)
        channels_last = features.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return warped.to(features.dtype, memory_format=layout)
