"""Discriminator against the golden files."""

import pytest
import torch

from models.discriminator import Discriminator
from tests.support.golden import assert_close, golden_arrays, golden_state


@pytest.mark.parametrize("channels", [3, 15])
@torch.no_grad()
def test_discriminator_matches_the_original(channels: int) -> None:
    golden = golden_arrays(f"discriminator_{channels}ch")
    state = {}
    for name, tensor in golden_state(f"discriminator_{channels}ch").items():
        if name.startswith("down_blocks."):
            name = name.replace("down_blocks.", "convs.").replace(".conv.", ".")
        else:
            name = name.replace("conv.", "score.")
        state[name] = tensor
    discriminator = Discriminator(channels)
    discriminator.load_state_dict(state)
    assert_close(discriminator(golden["image"]), golden["score"])
