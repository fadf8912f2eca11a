"""TODO."""

import math

from configs.schema import SyncNetConfig, TrainConfig


def learning_rate(config: TrainConfig | SyncNetConfig, step: int) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to 0 at `max_steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.max_steps)))
