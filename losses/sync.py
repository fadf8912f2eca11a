"""The sync loss: a frozen SyncNet scores the generated mouths against the audio (paper, "Loss function")."""

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
    """Scalar: mean squared distance of the scores of generated mouths to 1, or to the scores of the real mouths.

    Real mouths do not always score 1, for instance in silence or behind a hand. With 1 as the target, the loss
    would demand the impossible in such frames.

    Args:
        syncnet: frozen; gradients flow through it to `output`.
        mouth_size: mouth size of the SyncNet, at most that of the crops; the mouths are downsampled to it.
        output: (B·5, 3, H, W), RGB in [0, 1], generated face crops; five consecutive frames of a clip follow one
            another.
        audio: (B, D, 9), the audio features of each clip.
        target: the real face crops, of the same shape as `output`; None for a target score of 1.
    """
    scores = syncnet(stack_mouths(output, mouth_size), audio)
    if target is None:
        return (scores - 1).square().mean()
    with torch.no_grad():
        target_scores = syncnet(stack_mouths(target, mouth_size), audio)
    return (scores - target_scores).square().mean()


def stack_mouths(crops: torch.Tensor, mouth_size: int) -> torch.Tensor:
    """Mouth boxes of face crops, downsampled, with five consecutive frames stacked in the channels.

    (B·5, 3, H, W) -> (B, 15, mouth_size, mouth_size).
    """
    rows, columns = mouth_box(mouth_size_of(crops.shape[-2]))
    mouths = F.adaptive_avg_pool2d(crops[..., rows, columns], mouth_size)
    return mouths.unflatten(0, (-1, CLIP_LENGTH)).flatten(1, 2)
