"""The official SyncNet (Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016), version 2, which
LSE-D and LSE-C are defined by. Not trained here; for the SyncNet of the sync loss see models/syncnet.py."""

from pathlib import Path

import torch
from torch import nn

from models.checkpoint import load_third_party

MFCC_WINDOW = 20  # columns, 100 a second: the 0.2 s of five frames


class SyncNetV2(nn.Module):
    """Embeds five frames of a face and 0.2 s of its sound, so that what belongs together lies close.

    Names and shapes are those of the released file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_block(nn.Conv2d(1, 64, 3, padding=1)),
            nn.Identity(),  # a pooling of one by one in the original: kept for the numbers in the names
            *_block(nn.Conv2d(64, 192, 3, padding=1)),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_block(nn.Conv2d(192, 384, 3, padding=1)),
            *_block(nn.Conv2d(384, 256, 3, padding=1)),
            *_block(nn.Conv2d(256, 256, 3, padding=1)),
            nn.MaxPool2d(3, stride=2),
            *_block(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netfcaud = _head()
        self.netcnnlip = nn.Sequential(
            *_block(nn.Conv3d(3, 96, (5, 7, 7), stride=(1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_block(nn.Conv3d(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_block(nn.Conv3d(256, 512, (1, 6, 6))),
        )
        self.netfclip = _head()

    def embed_faces(self, frames: torch.Tensor) -> torch.Tensor:
        """Every five consecutive frames of (T, 3, 224, 224), BGR in [0, 255] as the original reads them:
        (T − 4, 1024)."""
        found = self.netcnnlip(frames.transpose(0, 1)[None])
        return self.netfclip(found[0, :, :, 0, 0].T)

    def embed_sound(self, mfccs: torch.Tensor) -> torch.Tensor:
        """Windows (B, 13, 20) of MFCCs: (B, 1024)."""
        return self.netfcaud(self.netcnnaud(mfccs[:, None]).flatten(1))


def load_syncnet_v2(path: Path, device: torch.device) -> SyncNetV2:
    """The released network, ready to embed.

    Raises:
        UserError: the file is not a syncnet_v2.model.
    """
    network = SyncNetV2()
    load_third_party(path, network, "the official SyncNet (syncnet_v2.model)")
    return network.to(device).eval()


def _block(conv: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm3d if isinstance(conv, nn.Conv3d) else nn.BatchNorm2d
    return conv, norm(conv.out_channels), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
