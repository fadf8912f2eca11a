"""The training losses: perceptual, adversarial."""
