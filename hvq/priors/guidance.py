"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): logits moved away from those without the class.

One cache of 2B rows answers with and without the class: rows B and later are the same samples, their class hidden. A
vector counts as the class does, and both are hidden together.

Letters: B batch, K codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hvq.errors import ConfigurationError
from hvq.priors.base import Prior
from hvq.priors.condition import Condition, ConditionEncoder


def num_classes(prior: Prior) -> int:
    """How many classes a prior knows; 0 for one that was trained without."""
    return max((part.num_classes for part in prior.modules() if isinstance(part, ConditionEncoder)), default=0)


def vector_size(prior: Prior) -> int:
    """V of the vectors that a prior is conditioned on; 0 for one that was trained without."""
    return max((part.vector_size for part in prior.modules() if isinstance(part, ConditionEncoder)), default=0)


def require_guide(prior: Prior, level: str, guidance: float) -> None:
    """Refuse guidance of a prior that has nothing to be guided by.

    Raises:
        ConfigurationError: where guidance is asked for, and the prior has neither classes nor vectors.
    """
    if guidance != 1 and not num_classes(prior) and not vector_size(prior):
        raise ConfigurationError(
            f"guidance takes classes or vectors, and the prior of level {level} was trained without; received guidance "
            f"{guidance:g}: set it to 1, which means none, or train the prior on labelled images"
        )


def with_and_without_class(condition: Condition) -> Condition:
    """The condition of B samples, and after them that of the same samples without class and vector: 2B rows."""
    labels, vector = condition.labels, condition.vector
    return Condition(
        codes={name: _twice(codes) for name, codes in condition.codes.items()},
        labels=None if labels is None else torch.cat([labels, torch.full_like(labels, -1)]),
        features=None if condition.features is None else _twice(condition.features),
        vector=None if vector is None else torch.cat([vector, torch.full_like(vector, torch.nan)]),
    )


def guided_logits(logits: Tensor, told: Tensor | None, guidance: float) -> Tensor:
    """Logits `[B, K]` from logits `[2B, K]` with and without the class.

    Args:
        logits: of the B samples with their class and vector, then of the same without.
        told: bool `[B]`, `Condition.told`; samples that have neither stay as they are.
        guidance: 1 takes the former, 0 the latter.

    >>> guided_logits(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), torch.tensor([True]), 2.0).tolist()
    [[1.5, 0.0]]
    """
    conditional, unconditional = logits.chunk(2)
    if told is None:
        return conditional
    moved = unconditional + guidance * (conditional - unconditional)
    return torch.where(told.unsqueeze(-1), moved, conditional)


def _twice(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows])
