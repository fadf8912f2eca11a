"""Learning-rate schedules."""

import math

from configs.schema import SyncNetConfig, TrainConfig


def cosine_decay(step: int, total: int) -> float:
    """Factor that falls along half a cosine period from 1 at step 0 to 0 at step `total`, and stays 0."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def learning_rate(config: TrainConfig | SyncNetConfig, step: int) -> float:
    """Learning rate of one training step.

    It is constant, or falls along a cosine to 0 at `max_steps`; a linear warm-up over `warmup_steps` multiplies it.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay = cosine_decay(step, config.max_steps) if config.schedule == "cosine" else 1.0
    return config.learning_rate * warmup * decay
