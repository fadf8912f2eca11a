"""SyncNet: scores whether mouths and audio are in sync; the network of the sync loss (paper, "Loss function")."""

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import CONV

CLIP_LENGTH = 5  # frames that are scored together
SYNC_WINDOW = 9  # rows of audio features: the audio windows of the five frames together


class SyncNet(nn.Module):
    """Scores every patch of five mouths against the audio: near 1 if in sync, near 0 if not.

    Without norms, so the score of a clip does not depend on the other clips of its batch. Fully convolutional; a
    patch is 32 pixels wide.

    Args:
        audio_dim: dimensions of the audio features.
    """

    def __init__(self, audio_dim: int = 29) -> None:
        super().__init__()
        self.audio_dim = audio_dim
        self.face_encoder = nn.Sequential(
            _Conv(3 * CLIP_LENGTH, 64, 7),
            _Residual(64),
            _HalvingConv(64, 64),
            _Conv(64, 128, 3),
            _Residual(128),
            *(layer for _ in range(3) for layer in (_HalvingConv(128, 128), _Conv(128, 128, 3), _Residual(128))),
            _HalvingConv(128, 128),
            _Conv(128, 128, 1),
        )
        self.audio_encoder = nn.Sequential(
            _Conv(audio_dim, 128, 7, dims=1),
            *(layer for _ in range(3) for layer in (_Residual(128, dims=1), _Conv(128, 128, 3, stride=2, dims=1))),
            _Conv(128, 128, 3, dims=1),
            nn.AdaptiveAvgPool1d(1),
        )
        self.merge_encoder = nn.Sequential(
            nn.Conv2d(256, 128, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(128, 1, 3, padding=1)
        )

    def forward(self, mouths: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Score audio–video pairs.

        Args:
            mouths: (B, 15, S, S), the mouth boxes of five consecutive frames stacked in the channels, RGB in
                [0, 1]; S a multiple of 32.
            audio: (B, D, 9), the audio features of these frames and of two frames before and after them.

        Returns:
            (B, 1, S/32, S/32).

        Raises:
            ValueError: a shape is not as above.
        """
        if mouths.ndim != 4 or mouths.shape[1] != 3 * CLIP_LENGTH or mouths.shape[2] % 32 or mouths.shape[3] % 32:
            raise ValueError(f"mouths: expected (B, 15, S, S), S a multiple of 32, got {tuple(mouths.shape)}")
        if audio.shape != (len(mouths), self.audio_dim, SYNC_WINDOW):
            expected = (len(mouths), self.audio_dim, SYNC_WINDOW)
            raise ValueError(f"audio: expected {expected}, got {tuple(audio.shape)}")
        return self.merge(self.face_encoder(mouths), self.audio_encoder(audio))

    def merge(self, faces: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Scores (B, 1, h, w) of encoded mouths (B, 128, h, w) and encoded audio (B, 128, 1)."""
        audio = audio[..., None].expand(-1, -1, *faces.shape[2:])
        return self.merge_encoder(torch.cat([faces, audio], dim=1)).float()

    @torch.no_grad()
    def calibrate(self, mouths: torch.Tensor, audio: torch.Tensor) -> None:
        """Initialise the layers from data before training: scale and centre every output, as norms would do.

        With PyTorch's initialisation, differences between samples vanish in so many layers without norms: all
        scores are equal, and training starts on a plateau that it may never leave. Residual blocks are initialised
        to the identity and the score to 0.5. Arguments as for `forward`.
        """
        zeroed = [
            *(block.conv2 for block in self.modules() if isinstance(block, _Residual)),
            self.merge_encoder[-1],
        ]
        for conv in zeroed:
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.merge_encoder[-1].bias, 0.5)

        def normalise(conv: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
            dims = [0, *range(2, output.ndim)]
            std, mean = torch.std_mean(output, dims)
            conv.weight /= std.reshape(-1, *[1] * (conv.weight.ndim - 1))
            conv.bias.sub_(mean).div_(std)
            shape = (1, -1, *[1] * (output.ndim - 2))
            return (output - mean.reshape(shape)) / std.reshape(shape)

        convs = [m for m in self.modules() if isinstance(m, nn.Conv1d | nn.Conv2d) and m not in zeroed]
        hooks = [conv.register_forward_hook(normalise) for conv in convs]
        try:
            self(mouths, audio)
        finally:
            for hook in hooks:
                hook.remove()


class _Conv(nn.Module):
    """Convolution, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, dims: int = 2
    ) -> None:
        super().__init__()
        self.conv = CONV[dims](in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x))


class _HalvingConv(_Conv):
    """A `_Conv` of kernel size 3, then 2 × 2 average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class _Residual(nn.Module):
    """x + two times (ReLU, convolution of kernel size 3)."""

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        self.conv1 = CONV[dims](channels, channels, 3, padding=1)
        self.conv2 = CONV[dims](channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))
