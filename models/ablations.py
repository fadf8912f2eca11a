"""The modules that replace AdaAT in the paper's ablations (Table 2).

Like AdaAT, each deforms features according to a code and starts with a layer `common`, which the whole code passes
through. Unlike AdaAT, each may use the source features F_s.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import ConvBlock


class AdaIN(nn.Module):
    """Without deformation: F_s with the mean and standard deviation of every channel predicted from the code.

    The reference features are not used; the references influence the output through the code only.
    """

    def __init__(self, code_dim: int, num_channels: int) -> None:
        super().__init__()
        self.common = nn.Linear(code_dim, code_dim)
        self.moments = nn.Linear(code_dim, 2 * num_channels)

    def forward(self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """`source` F_s (B, C, H, W) and `code` (B, code_dim) -> (B, C, H, W); `features` are not used."""
        deviation, mean = self.moments(F.relu(self.common(code)))[..., None, None].chunk(2, dim=1)
        return F.instance_norm(source) * (1 + deviation) + mean


class Attention(nn.Module):
    """Cross-attention: queries from F_s and the code, keys and values from the reference features."""

    def __init__(self, code_dim: int, num_channels: int) -> None:
        super().__init__()
        self.common = nn.Linear(code_dim, code_dim)
        self.query = nn.Conv2d(num_channels + code_dim, num_channels // 4, 1)
        self.key = nn.Conv2d(num_channels, num_channels // 4, 1)
        self.value = nn.Conv2d(num_channels, num_channels, 1)

    def forward(self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """`features` and `source` F_s (B, C, H, W), `code` (B, code_dim) -> (B, C, H, W)."""
        queries = self.query(torch.cat([source, _broadcast(F.relu(self.common(code)), source)], dim=1))
        query, key, value = (x.flatten(2).mT for x in (queries, self.key(features), self.value(features)))
        return F.scaled_dot_product_attention(query, key, value).mT.unflatten(2, features.shape[2:])


class DenseFlow(nn.Module):
    """Dense flow: one flow field, shared by all channels, warps the reference features."""

    def __init__(self, code_dim: int, num_channels: int) -> None:
        super().__init__()
        self.common = nn.Linear(code_dim, code_dim)
        self.flow = nn.Sequential(
            ConvBlock(2 * num_channels + code_dim, 128, 3),
            ConvBlock(128, 128, 7),
            nn.Conv2d(128, 2, 3, padding=1),
            nn.Tanh(),
        )
        nn.init.zeros_(self.flow[-2].weight)  # the initial flow is zero
        nn.init.zeros_(self.flow[-2].bias)

    def forward(self, features: torch.Tensor, code: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """`features` and `source` F_s (B, C, H, W), `code` (B, code_dim) -> (B, C, H, W)."""
        hidden = _broadcast(F.relu(self.common(code)), source)
        flow = self.flow(torch.cat([source, features, hidden], dim=1))
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 cannot resolve neighbouring positions
            flow, planes = flow.float(), features.float()
            identity = torch.eye(2, 3, device=flow.device).expand(len(flow), -1, -1)
            grid = F.affine_grid(identity, list(flow.shape), align_corners=False) + flow.permute(0, 2, 3, 1)
            return F.grid_sample(planes, grid, align_corners=False).to(features.dtype)


def _broadcast(code: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, D) -> (B, D, H, W) with the height and width of `like`."""
    return code[..., None, None].expand(-1, -1, *like.shape[2:])
