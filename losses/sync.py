"""The sync loss: generated mouths should fit the sound as a frozen SyncNet hears it (paper, "Loss function")."""

import torch
import torch.nn.functional as F

from models.crop_layout import mouth_box, mouth_size_of
from models.syncnet import CLIP_LENGTH, SyncNet


def sync_loss(
    syncnet: SyncNet,
    mouth_size: int,
    output: torch.Tensor,
    audio: torch.Tensor,
    target: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scalar: mean squared distance of the generated mouths' scores to 1, or to the scores of the real ones.

    The real mouths are no perfect judge's 1 either: what was said in silence, or hidden by a hand, has a score of
    its own, and drawing these frames to 1 asks for something that no mouth can give.

    Args:
        syncnet: frozen; gradients flow through it to `output`.
        mouth_size: SyncNet's, the crops' or a smaller one: it judges mouths at its own size.
        output: (B·5, 3, H, W), generated face crops, five consecutive frames of a clip after one another.
        audio: (B, D, 9).
        target: the real crops in place of `output`, or None for a score of 1.
    """
    scores = syncnet(stack_mouths(output, mouth_size), audio)
    if target is None:
        return (scores - 1).square().mean()
    with torch.no_grad():
        wanted = syncnet(stack_mouths(target, mouth_size), audio)
    return (scores - wanted).square().mean()


def stack_mouths(crops: torch.Tensor, mouth_size: int) -> torch.Tensor:
    """Mouth boxes of face crops (B·5, 3, H, W), shrunk to `mouth_size` and those of five consecutive frames stacked
    in the channels: (B, 15, mouth_size, mouth_size)."""
    rows, columns = mouth_box(mouth_size_of(crops.shape[-2]))
    mouths = F.adaptive_avg_pool2d(crops[..., rows, columns], mouth_size)
    return mouths.unflatten(0, (-1, CLIP_LENGTH)).flatten(1, 2)
