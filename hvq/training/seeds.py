"""Fresh weights as a function of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hvq.randomness import hash_words


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draws inside depend on the seed and the purpose; torch's generator goes on as before after.

    >>> with seeded(0, "example"): first = torch.rand(1)
    >>> with seeded(0, "example"): second = torch.rand(1)
    >>> torch.equal(first, second)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash_words(seed, purpose) >> 1))
        yield
