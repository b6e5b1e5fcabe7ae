"""What two processes do with codebooks, against each other and against one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hvq.distributed import Reduction, current_reduction
from hvq.quantizers import CodebookStep, VectorQuantizer
from tests.processes import run_in_processes

STEPS = 50


def train(
    quantizer: VectorQuantizer, batches: list[Tensor], reduction: Reduction, micro_batches: int = 1
) -> dict[str, Tensor]:
    codebooks = CodebookStep({"top": quantizer})
    for batch in batches:
        for part in batch.chunk(micro_batches):
            codebooks.add({"top": quantizer(part)})
        codebooks.step(reduction)
    return quantizer.state_dict()


def with_kmeans_and_revival(codebook_size: int) -> dict[str, Tensor]:
    """Processes that start apart, and see batches of other contents and sizes."""
    reduction = current_reduction()
    torch.manual_seed(reduction.rank)
    quantizer = VectorQuantizer(codebook_size=codebook_size, code_dimension=3, revival_threshold=0.5)
    batches = [torch.randn(2 + 3 * reduction.rank, 3, 5, 7) * (1 + reduction.rank) + step / 10 for step in range(STEPS)]
    quantizer.initialize(torch.movedim(batches[0], 1, -1).flatten(0, -2), 1 + reduction.rank, reduction)
    first = {f"first {name}": tensor.clone() for name, tensor in quantizer.state_dict().items()}
    return {**first, **train(quantizer, batches, reduction)}


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 3])
def test_codebooks_are_bitwise_equal_with_kmeans_and_revival(processes: int) -> None:
    states = run_in_processes(with_kmeans_and_revival, processes, 31)
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for name, tensor in states[0].items():
            assert torch.equal(state[name], tensor), name


def from_one_start(starts: list[tuple[Tensor, list[Tensor]]], micro_batches: int = 1) -> list[dict[str, Tensor]]:
    """Train each codebook on this process's part of its batches, without revival."""
    reduction = current_reduction()
    states = []
    for codebook, batches in starts:
        quantizer = VectorQuantizer(codebook_size=codebook.shape[0], code_dimension=3, revival_threshold=0.0)
        quantizer.to(codebook.dtype)
        quantizer.codebooks[0].vectors.copy_(codebook)
        quantizer.codebooks[0].moving_sums.copy_(codebook)
        cuts = [0, 4, len(batches[0])] if reduction.size == 2 else [0, len(batches[0])]
        mine = slice(cuts[reduction.rank], cuts[reduction.rank + 1])
        states.append(train(quantizer, [batch[mine] for batch in batches], reduction, micro_batches))
    return states


def starts_of_both_precisions() -> list[tuple[Tensor, list[Tensor]]]:
    return [
        (torch.randn(13, 3, dtype=kind), [torch.randn(11, 3, 5, 7, dtype=kind) for _ in range(STEPS)])
        for kind in (torch.float32, torch.float64)
    ]


def check_close(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    """Within 1e-5 in float32 and 1e-12 in float64, averages relative to counts, which are in the tens."""
    for state, expected_state, tolerance in zip(found, expected, [1e-5, 1e-12], strict=True):
        scale = float(expected_state["head_codebooks.0.moving_counts"].max())
        for name, tensor in expected_state.items():
            allowed = tolerance * (scale if ".moving_" in name else 1)
            assert torch.allclose(state[name].double(), tensor.double(), rtol=0, atol=allowed), name


@pytest.mark.processes
def test_two_processes_learn_what_one_learns_on_the_joined_batch() -> None:
    starts = starts_of_both_precisions()
    expected = from_one_start(starts)
    for found in run_in_processes(from_one_start, 2, starts):
        check_close(found, expected)


def test_four_micro_batches_learn_what_one_batch_learns() -> None:
    starts = starts_of_both_precisions()
    check_close(from_one_start(starts, 4), from_one_start(starts))
