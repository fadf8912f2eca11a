"""Sync loss against a direct computation."""

import pytest
import torch

from losses.sync import stack_mouths, sync_loss
from models.syncnet import SyncNet


@pytest.fixture(scope="module")
def frozen_syncnet() -> SyncNet:
    """Random weights whose scores depend on the input."""
    torch.manual_seed(0)
    syncnet = SyncNet()
    torch.nn.init.normal_(syncnet.merge_encoder[-1].weight, std=0.05)
    return syncnet.requires_grad_(False)


def test_sync_loss(frozen_syncnet: SyncNet) -> None:
    clips = torch.rand(2, 5, 3, 104, 80)
    audio = torch.randn(2, 29, 9)
    output = clips.flatten(0, 1).requires_grad_()
    mouths = clips[..., 32:96, 8:72].reshape(2, 15, 64, 64)  # rows S/2 … 3S/2, columns S/8 … 9S/8
    assert torch.equal(stack_mouths(output, 64), mouths)

    shrunk = mouths.unflatten(2, (32, 2)).unflatten(4, (32, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(stack_mouths(output, 32), shrunk)  # for a SyncNet of smaller mouths

    loss = sync_loss(frozen_syncnet, 64, output, audio)
    torch.testing.assert_close(loss.detach(), ((frozen_syncnet(mouths, audio) - 1) ** 2).mean())
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient[..., 32:96, 8:72].abs().sum() > 0
    gradient[..., 32:96, 8:72] = 0
    assert gradient.abs().sum() == 0  # no gradient outside the mouth box

    target = torch.rand(10, 3, 104, 80)
    real = sync_loss(frozen_syncnet, 64, output, audio, target)
    target_scores = frozen_syncnet(stack_mouths(target, 64), audio)
    torch.testing.assert_close(real.detach(), ((frozen_syncnet(mouths, audio) - target_scores) ** 2).mean())
    assert sync_loss(frozen_syncnet, 64, target, audio, target) == 0
