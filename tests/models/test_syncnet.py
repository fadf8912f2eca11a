"""SyncNet against the golden file; initialisation from data."""

import re

import pytest
import torch

from models.syncnet import SyncNet
from tests.support.golden import assert_close, golden_arrays, golden_state


@torch.no_grad()
def test_syncnet_matches_the_original() -> None:
    golden = golden_arrays("syncnet_64")
    syncnet = SyncNet()
    state = golden_state("syncnet")
    syncnet.load_state_dict({re.sub("(face|audio)_conv[.]", "", name): tensor for name, tensor in state.items()})
    assert_close(syncnet(golden["mouth"], golden["audio"]), golden["score"])


@torch.no_grad()
def test_calibration() -> None:
    torch.manual_seed(0)
    syncnet = SyncNet()
    mouths, audio = torch.rand(8, 15, 64, 64), torch.randn(8, 29, 9)
    assert (
        syncnet.face_encoder(mouths).std(dim=0).mean() < 0.01
    )  # without calibration all samples have the same code
    syncnet.calibrate(mouths, audio)
    assert torch.equal(syncnet(mouths, audio), torch.full((8, 1, 2, 2), 0.5))
    for encoder, samples in ((syncnet.face_encoder, mouths), (syncnet.audio_encoder, audio)):
        before_relu = []
        hook = encoder[0].conv.register_forward_hook(lambda *args: before_relu.append(args[2]))  # noqa: B023
        code = encoder(samples)
        hook.remove()
        (first,) = before_relu
        dims = [0, *range(2, first.ndim)]
        torch.testing.assert_close(first.mean(dims), torch.zeros(first.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(first.std(dims), torch.ones(first.shape[1]), atol=1e-3, rtol=0)
        assert code.std(dim=0).mean() > 0.2
    with pytest.raises(ValueError, match="mouths: expected"):
        syncnet(mouths[..., :48], audio)
    with pytest.raises(ValueError, match="audio: expected"):
        syncnet(mouths, audio[..., :5])
