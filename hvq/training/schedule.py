"""The learning rate, a function of the optimizer step alone."""

from __future__ import annotations

import math

from hvq.config import OptimizationConfig


def learning_rate(config: OptimizationConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to `final_learning_rate` of the peak.

    Args:
        config: peak, warm-up and length.
        step: 0 .. config.steps - 1.

    >>> config = OptimizationConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.0)
    >>> learning_rate(config, 4), learning_rate(config, 10), round(learning_rate(config, 55), 6)
    (0.5, 1.0, 0.5)
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)
