"""The first blocks of Whisper's encoder (Radford et al., "Robust speech recognition via large-scale weak
supervision", 2022), which give the default audio features.

Later blocks represent words more than sounds. On held-out speakers the third block explains more of the lip shape
than any other (checkpoints/README.md). Weights and input: data_processing/audio/whisper.py.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

NUM_BLOCKS = 3
WIDTH = 384
HEADS = 6
NUM_MELS = 80
MAX_ROWS = 1500  # 30 seconds, the input length that Whisper was trained with


class WhisperEncoder(nn.Module):
    """The first NUM_BLOCKS blocks of Whisper tiny's encoder: log-mel (B, 80, 2L) -> (B, L, 384), L at most 1500."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(NUM_MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.register_buffer("positions", _sinusoids(MAX_ROWS, WIDTH), persistent=False)
        self.blocks = nn.ModuleList(
            # Whisper's blocks equal PyTorch's with norm_first.
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(NUM_BLOCKS)
        )

    def forward(self, mel: torch.Tensor, starts: Sequence[int] = (0,)) -> torch.Tensor:
        """Log-mel spectrogram (B, 80, 2L) at 100 columns per second -> (B, L, 384) at 50 rows per second.

        With K `starts`, positions that the first row is given, (K · B, L, 384).
        """
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = torch.cat([x + self.positions[start : start + x.shape[1]] for start in starts])
        for block in self.blocks:
            x = block(x)
        return x


def _sinusoids(length: int, width: int) -> torch.Tensor:
    """Position embedding (length, width): sines in the first half of the columns, cosines in the second."""
    rates = torch.exp(-np.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
