"""The training losses: perceptual, adversarial, sync."""
