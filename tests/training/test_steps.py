"""What the training steps of both networks share."""

import math
from typing import NamedTuple

import pytest
import torch

from training.steps import check_finite, micro_batches, without_traces
from utils.errors import UserError


class Pair(NamedTuple):
    """Two samples of two images each, and one row of audio each."""

    images: torch.Tensor
    audio: torch.Tensor
    clip_ids: list[str]


def test_parts_hold_whole_samples_and_their_fraction():
    images, audio = torch.arange(0, 250, 25, dtype=torch.uint8)[:, None], torch.arange(5.0)
    parts = micro_batches(Pair(images, audio, list("abcde")), 2, torch.device("cpu"))
    assert [share for _, share in parts] == [0.4, 0.6]
    first, second = (part for part, _ in parts)
    assert first.audio.tolist() == [0, 1] and second.audio.tolist() == [2, 3, 4]
    assert (255 * first.images[:, 0]).tolist() == pytest.approx([0, 25, 50, 75])  # two rows for each sample
    assert first.images.dtype == torch.float32 and len(second.images) == 6
    assert first.clip_ids == second.clip_ids == list("abcde")


def test_repeated_forward_pass_changes_nothing():
    norm, x = torch.nn.BatchNorm1d(2), torch.rand(3, 2)
    with without_traces(torch.nn.Sequential(norm)):
        first = norm(x)
    assert not first.requires_grad and norm.num_batches_tracked == 0 and not norm.running_mean.any()
    second = norm(x)
    assert torch.equal(first, second) and second.requires_grad and norm.running_mean.all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite_name_the_clips(value):
    check_finite({"pixel": 1.0}, 7, ["a", "b"])
    with pytest.raises(UserError, match=r"step 7: a loss is NaN or Inf: .*; clips: a, b"):
        check_finite({"pixel": 1.0, "lips": value}, 7, ["a", "b"])
