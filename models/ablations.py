"""What the paper's ablations put in the place of AdaAT (its Table 2).

Like AdaAT each deforms features by a code and begins with a layer `common` that all the code passes; unlike it,
each may look at the source's features F_s.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import ConvBlock


class AdaIN(nn.Module):
    """Without deformation: F_s itself, every channel moved to a mean and a deviation that the code asks for.

    The references' features are not used; what is known of them is in the code.
    """

    def __init__(self, code_dim: int, num_channels: int) -> None:
        super().__init__()
        self.common = nn.Linear(code_dim, code_dim)
        self.moments = nn.Linear(code_dim, 2 * num_channels)

    def forward(self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """F_s (B, C, H, W) and code (B, code_dim) to (B, C, H, W)."""
        deviation, mean = self.moments(F.relu(self.common(code)))[..., None, None].chunk(2, dim=1)
        return F.instance_norm(source) * (1 + deviation) + mean


class Attention(nn.Module):
    """Every place of F_s, knowing the code, gathers the references' features from all places by their likeness."""

    def __init__(self, code_dim: int, num_channels: int) -> None:
        super().__init__()
        self.common = nn.Linear(code_dim, code_dim)
        self.query = nn.Conv2d(num_channels + code_dim, num_channels // 4, 1)
        self.key = nn.Conv2d(num_channels, num_channels // 4, 1)
        self.value = nn.Conv2d(num_channels, num_channels, 1)

    def forward(self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Features and F_s (B, C, H, W), code (B, code_dim), to (B, C, H, W)."""
        asked = self.query(torch.cat([source, _everywhere(F.relu(self.common(code)), source)], dim=1))
        query, key, value = (x.flatten(2).mT for x in (asked, self.key(features), self.value(features)))
        return F.scaled_dot_product_attention(query, key, value).mT.unflatten(2, features.shape[2:])


class DenseFlow(nn.Module):
    """One flow field, of a vector at every place, warps all channels alike."""

    def __init__(self, code_dim: int, num_channels: int) -> None:
        super().__init__()
        self.common = nn.Linear(code_dim, code_dim)
        self.flow = nn.Sequential(
            ConvBlock(2 * num_channels + code_dim, 128, 3),
            ConvBlock(128, 128, 7),
            nn.Conv2d(128, 2, 3, padding=1),
            nn.Tanh(),
        )
        nn.init.zeros_(self.flow[-2].weight)  # begins by moving nothing
        nn.init.zeros_(self.flow[-2].bias)

    def forward(self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Features and F_s (B, C, H, W), code (B, code_dim), to (B, C, H, W)."""
        hidden = _everywhere(F.relu(self.common(code)), source)
        flow = self.flow(torch.cat([source, features, hidden], dim=1))
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 cannot tell neighbouring places apart
            flow, planes = flow.float(), features.float()
            still = torch.eye(2, 3, device=flow.device).expand(len(flow), -1, -1)
            grid = F.affine_grid(still, list(flow.shape), align_corners=False) + flow.permute(0, 2, 3, 1)
            return F.grid_sample(planes, grid, align_corners=False).to(features.dtype)


def _everywhere(code: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, D) -> (B, D, H, W) of `like`."""
    return code[..., None, None].expand(-1, -1, *like.shape[2:])
