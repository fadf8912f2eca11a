"""The sync loss: generated mouths should fit the sound as a frozen SyncNet hears it (paper, "Loss function")."""

import torch

from data_processing.geometry import mouth_box, mouth_size_of
from models.syncnet import CLIP_LENGTH, SyncNet


def sync_loss(
    syncnet: SyncNet, output: torch.Tensor, audio: torch.Tensor, target: torch.Tensor | None = None
) -> torch.Tensor:
    """Scalar: mean squared distance of the generated mouths' scores to 1, or to the scores of the real ones.

    The real mouths are no perfect judge's 1 either: what was said in silence, or hidden by a hand, has a score of
    its own, and drawing these frames to 1 asks for something that no mouth can give.

    Args:
        syncnet: frozen; gradients flow through it to `output`.
        output: (B·5, 3, H, W), generated face crops, five consecutive frames of a clip after one another.
        audio: (B, D, 9).
        target: the real crops in place of `output`, or None for a score of 1.
    """
    scores = syncnet(stack_mouths(output), audio)
    if target is None:
        return (scores - 1).square().mean()
    with torch.no_grad():
        wanted = syncnet(stack_mouths(target), audio)
    return (scores - wanted).square().mean()


def stack_mouths(crops: torch.Tensor) -> torch.Tensor:
    """Mouth boxes of face crops (B·5, 3, H, W), those of five consecutive frames in the channels: (B, 15, S, S)."""
    rows, columns = mouth_box(mouth_size_of(crops.shape[-2]))
    return crops[..., rows, columns].unflatten(0, (-1, CLIP_LENGTH)).flatten(1, 2)
