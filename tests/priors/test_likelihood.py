"""Nats per code against an independent sum, and what a prior is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hvq.data import CodeBatch
from hvq.priors import TransformerPrior
from hvq.priors.likelihood import hidden_labels, nats_per_code, prior_inputs

LEVELS = ("top", "bottom")


def batch_of(rows: range) -> CodeBatch:
    """Rows of one fixed set of codes."""
    generator = torch.Generator().manual_seed(0)
    codes = {
        "top": torch.randint(7, (17, 2, 3), generator=generator),
        "bottom": torch.randint(5, (17, 3, 5), generator=generator),
    }
    index = torch.tensor(list(rows))
    labels = (index % 4) - 1
    return CodeBatch({name: code[index] for name, code in codes.items()}, labels, index, index // 5)


@pytest.fixture(scope="module")
def prior() -> TransformerPrior:
    torch.manual_seed(0)
    return TransformerPrior(codebook_size=5, coarser={"top": 7}, num_classes=3, width=8, layers=1, heads=2).double()


@pytest.mark.parametrize("chunk_size", [3, 17, 20])
def test_nats_are_the_mean_over_all_codes_for_any_chunk_size(prior: TransformerPrior, chunk_size: int) -> None:
    prior.eval()
    whole = batch_of(range(17))
    targets, condition = prior_inputs(whole, "bottom", level_names=LEVELS, device=torch.device("cpu"))
    with torch.no_grad():
        probabilities = prior(targets, condition).softmax(-1)
    expected = [-math.log(p[c]) for p, c in zip(probabilities.flatten(0, 2).tolist(), targets.flatten(), strict=True)]
    prior.train()
    batches = [batch_of(range(start, min(17, start + chunk_size))) for start in range(0, 17, chunk_size)]
    nats = nats_per_code(prior, batches, "bottom", level_names=LEVELS, chunk_size=chunk_size)
    assert nats == pytest.approx(np.mean(expected), rel=1e-12)
    assert prior.training


def test_a_prior_is_told_coarser_levels_only_and_no_hidden_label() -> None:
    batch = batch_of(range(5))
    hidden = torch.tensor([True, False, False, True, False])
    device = torch.device("cpu")
    targets, condition = prior_inputs(batch, "bottom", level_names=LEVELS, device=device, hidden_labels=hidden)
    assert torch.equal(targets, batch.codes["bottom"])
    assert list(condition.codes) == ["top"]
    assert condition.labels is not None
    assert condition.labels.tolist() == [-1, 0, 1, -1, -1]
    _, of_top = prior_inputs(batch, "top", level_names=LEVELS, device=device)
    assert not of_top.codes


def test_label_dropout_depends_on_seed_epoch_and_row_alone() -> None:
    whole = hidden_labels(batch_of(range(17)), seed=0, share=0.5)
    parts = [hidden_labels(batch_of(range(start, start + 1)), seed=0, share=0.5) for start in range(17)]
    assert torch.equal(torch.cat(parts), whole)
    assert 0 < int(whole.sum()) < 17
    assert not torch.equal(hidden_labels(batch_of(range(17)), seed=1, share=0.5), whole)
    assert not hidden_labels(batch_of(range(17)), seed=0, share=0.0).any()
