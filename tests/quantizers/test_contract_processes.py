"""Two processes against one on the joined batch, for every kind whose training draws nothing at random."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hvq.distributed import current_reduction
from hvq.quantizers import CodebookStep, Quantizer
from tests.processes import run_in_processes
from tests.quantizers.kinds import DIMENSION, EXACT, KINDS

STEPS = 5


def batch_of(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, DIMENSION, 3, 7, generator=generator, dtype=torch.float64)


def train(quantizer: Quantizer) -> dict[str, Tensor]:
    """k-means over all processes, then steps without revival, whose candidates are other latents of the batch."""
    reduction = current_reduction()
    mine = slice(reduction.rank * 6 // reduction.size, (reduction.rank + 1) * 6 // reduction.size)
    first = torch.movedim(torch.cat([batch_of(100 + i) for i in range(5)]), 1, -1).flatten(0, -2)
    quantizer.initialize(first.chunk(reduction.size)[reduction.rank], 5, reduction)
    for codebook in quantizer.codebooks:
        codebook.revival_threshold = 0.0
    codebooks = CodebookStep({"top": quantizer})
    for step in range(STEPS):
        codebooks.add({"top": quantizer(batch_of(step)[mine])})
        codebooks.step(reduction)
    return quantizer.state_dict()


def train_all() -> dict[str, dict[str, Tensor]]:
    states = {}
    for kind in EXACT:
        torch.manual_seed(3)
        states[kind] = train(KINDS[kind]().double())
    return states


@pytest.mark.processes
def test_two_processes_learn_what_one_learns_on_the_joined_batch() -> None:
    expected = train_all()
    assert sum(bool(KINDS[kind]().codebooks) for kind in expected) > 6
    for found in run_in_processes(train_all, 2):
        for kind, state in expected.items():
            for name, tensor in state.items():
                assert torch.allclose(found[kind][name].double(), tensor.double(), rtol=1e-9, atol=1e-9), (kind, name)


def two_forwards_through_ddp() -> list[float]:
    """Looks at some latents between forward and backward, on one process only, as a preview does."""
    reduction = current_reduction()
    norms = []
    for kind in ("vector gradient", "residual", "sim", "lookup_free projection"):
        torch.manual_seed(3)
        encoder = torch.nn.Conv2d(DIMENSION, DIMENSION, 1)
        quantizer = KINDS[kind]()
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(encoder, quantizer))
        first, second = model(batch_of(0).float()), model(batch_of(1).float())
        if reduction.rank == 0:
            model.module.eval()(batch_of(2).float())
            model.module.train()
        total = sum(result.vectors.square().mean() + sum(result.losses.values()) for result in (first, second))
        total.backward()
        norms.append(float(encoder.weight.grad.norm()))
    return norms


@pytest.mark.processes
def test_two_forwards_through_ddp_and_a_preview_on_one_process_harm_nothing() -> None:
    one, other = run_in_processes(two_forwards_through_ddp, 2)
    assert one == other
    assert all(norm > 0 for norm in one)
