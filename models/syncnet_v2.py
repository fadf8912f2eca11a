"""The official SyncNet, version 2 (Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016), which
defines LSE-D and LSE-C. It is not trained here; the SyncNet of the sync loss is in models/syncnet.py."""

from pathlib import Path

import torch
from torch import nn

from models.checkpoint import load_third_party

MFCC_WINDOW = 20  # columns at 100 per second: the 0.2 s of five frames


class SyncNetV2(nn.Module):
    """Embeds five frames of a face and 0.2 s of audio; the embeddings of matched pairs have a small distance.

    Names and shapes of the tensors are those of the released file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_block(nn.Conv2d(1, 64, 3, padding=1)),
            nn.Identity(),  # 1 × 1 pooling in the original; keeps the indices in the tensor names
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
        """Frames (T, 3, 224, 224), BGR in [0, 255] as in the original -> embeddings (T − 4, 1024), one for every
        five consecutive frames."""
        features = self.netcnnlip(frames.transpose(0, 1)[None])
        return self.netfclip(features[0, :, :, 0, 0].T)

    def embed_audio(self, mfccs: torch.Tensor) -> torch.Tensor:
        """Windows of MFCCs (B, 13, 20) -> embeddings (B, 1024)."""
        return self.netfcaud(self.netcnnaud(mfccs[:, None]).flatten(1))


def load_syncnet_v2(path: Path, device: torch.device) -> SyncNetV2:
    """Load the released network, in evaluation mode.

    Raises:
        WeightsError: the file cannot be read or is not a syncnet_v2.model.
    """
    network = SyncNetV2()
    load_third_party(path, network, "the official SyncNet (syncnet_v2.model)")
    return network.to(device).eval()


def _block(conv: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm3d if isinstance(conv, nn.Conv3d) else nn.BatchNorm2d
    return conv, norm(conv.out_channels), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))
