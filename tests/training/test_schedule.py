"""The learning rate is a function of the step: up in a line, down in a cosine."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvq.config import OptimizationConfig
from hvq.training.schedule import learning_rate

configs = st.builds(
    OptimizationConfig,
    steps=st.integers(1, 101),
    warmup_steps=st.integers(0, 41),
    learning_rate=st.floats(1e-5, 1.0),
    final_learning_rate=st.floats(0.0, 1.0),
)


@given(configs)
def test_it_rises_then_falls_within_its_bounds(config: OptimizationConfig) -> None:
    rates = [learning_rate(config, step) for step in range(config.steps)]
    rising, falling = rates[: config.warmup_steps], rates[config.warmup_steps :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0 < rate <= config.learning_rate * (1 + 1e-12) for rate in rising)
    lowest = config.learning_rate * config.final_learning_rate
    assert all(lowest <= rate * (1 + 1e-12) <= config.learning_rate * (1 + 2e-12) for rate in falling)


def test_values_by_hand() -> None:
    config = OptimizationConfig(steps=13, warmup_steps=3, learning_rate=0.6, final_learning_rate=0.1)
    assert [learning_rate(config, step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.6])
    assert learning_rate(config, 8) == pytest.approx(0.6 * (0.1 + 0.9 / 2))
    assert learning_rate(config, 12) == pytest.approx(0.6 * (0.1 + 0.9 * (1 + math.cos(0.9 * math.pi)) / 2))


def test_a_constant_rate_needs_no_special_case() -> None:
    config = OptimizationConfig(steps=7, warmup_steps=0, learning_rate=0.5, final_learning_rate=1.0)
    assert {learning_rate(config, step) for step in range(7)} == {0.5}
