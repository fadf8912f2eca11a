"""Least-squares GAN losses (paper, "Loss function"); scores have any shape, 1 means real and 0 generated."""

import torch


def discriminator_loss(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """Scalar: half the sum of the mean squared distances of real scores to 1 and of fake scores to 0.

    `fake_scores` must come from a detached output, or the generator would be trained to minimise this loss, too.
    """
    real_scores, fake_scores = real_scores.float(), fake_scores.float()
    return ((real_scores - 1).square().mean() + fake_scores.square().mean()) / 2


def generator_loss(fake_scores: torch.Tensor) -> torch.Tensor:
    """Scalar: the mean squared distance of fake scores to 1."""
    return (fake_scores.float() - 1).square().mean()
