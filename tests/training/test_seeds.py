"""Fresh weights are a function of seed and purpose, and the caller's generator goes on as before."""

from __future__ import annotations

import torch

from hvq.training.seeds import seeded


def _drawn(seed: int, purpose: str) -> torch.Tensor:
    with seeded(seed, purpose):
        return torch.rand(5)


def test_draws_depend_on_both_keys() -> None:
    assert torch.equal(_drawn(0, "autoencoder"), _drawn(0, "autoencoder"))
    assert not torch.equal(_drawn(0, "autoencoder"), _drawn(1, "autoencoder"))
    assert not torch.equal(_drawn(0, "autoencoder"), _drawn(0, "prior.top"))


def test_the_callers_draws_go_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(17)
    expected = torch.rand(3)
    torch.manual_seed(17)
    _drawn(0, "autoencoder")
    assert torch.equal(torch.rand(3), expected)
