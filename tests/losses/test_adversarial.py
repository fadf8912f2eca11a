"""LSGAN losses against the golden file."""

import torch

from losses.adversarial import discriminator_loss, generator_loss
from tests.support.golden import golden_arrays


def test_lsgan_matches_the_original() -> None:
    golden = golden_arrays("losses")
    loss_d = discriminator_loss(golden["pred_real"], golden["pred_fake"])
    loss_g = generator_loss(golden["pred_fake"])
    torch.testing.assert_close(loss_d.double(), golden["lsgan_d"], rtol=1e-6, atol=0)
    torch.testing.assert_close(loss_g.double(), golden["lsgan_g"], rtol=1e-6, atol=0)
