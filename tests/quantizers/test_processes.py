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
    return train(quantizer, batches, reduction)


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 3])
def test_codebooks_are_bitwise_equal_with_kmeans_and_revival(processes: int) -> None:
    states = run_in_processes(with_kmeans_and_revival, processes, 31)
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for name, tensor in states[0].items():
            assert torch.equal(state[name], tensor), name


def from_one_start(batches: list[Tensor], codebook: Tensor, micro_batches: int) -> dict[str, Tensor]:
    """Train on this process's part of each batch, without revival."""
    reduction = current_reduction()
    quantizer = VectorQuantizer(codebook_size=codebook.shape[0], code_dimension=3, revival_threshold=0.0)
    quantizer.to(codebook.dtype)
    quantizer.codebook.copy_(codebook)
    quantizer.moving_sums.copy_(codebook)
    cuts = [0, 4, len(batches[0])] if reduction.size == 2 else [0, len(batches[0])]
    mine = slice(cuts[reduction.rank], cuts[reduction.rank + 1])
    return train(quantizer, [batch[mine] for batch in batches], reduction, micro_batches)


def start_and_batches(kind: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    codebook = torch.randn(13, 3, dtype=kind)
    return codebook, [torch.randn(11, 3, 5, 7, dtype=kind) for _ in range(STEPS)]


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor.double(), rtol=0, atol=tolerance), name


@pytest.mark.processes
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_two_processes_learn_what_one_learns_on_the_joined_batch(kind: torch.dtype, tolerance: float) -> None:
    codebook, batches = start_and_batches(kind)
    expected = from_one_start(batches, codebook, 1)
    assert not torch.equal(expected["codebook"], codebook)
    for state in run_in_processes(from_one_start, 2, batches, codebook, 1):
        # Counts are in the hundreds, so that the bound on the averages is relative to them.
        scale = float(expected["moving_counts"].max())
        check_close({"codebook": state["codebook"]}, {"codebook": expected["codebook"]}, tolerance)
        check_close(state, expected, tolerance * scale)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_four_micro_batches_learn_what_one_batch_learns(kind: torch.dtype, tolerance: float) -> None:
    codebook, batches = start_and_batches(kind)
    expected, found = from_one_start(batches, codebook, 1), from_one_start(batches, codebook, 4)
    check_close({"codebook": found["codebook"]}, {"codebook": expected["codebook"]}, tolerance)
