from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as torch_distributed
from accelerate import Accelerator

from hvq.distributed import ProcessGroupReduction, Reduction, current_reduction
from tests.processes import run_in_processes


def test_one_process_gets_back_what_it_gave() -> None:
    reduction = current_reduction()
    tensor = torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    assert type(reduction) is Reduction
    assert (reduction.rank, reduction.size) == (0, 1)
    assert torch.equal(reduction.sum(tensor), tensor)
    assert torch.equal(reduction.concatenate(tensor), tensor)


def test_packing_keeps_shapes_types_and_values_on_one_process() -> None:
    counts = torch.tensor([2**52 + 1, 3], dtype=torch.int64)
    sums = torch.randn(3, 5)
    rows = torch.randn(7, 2, dtype=torch.float64)
    (summed_counts, summed), (joined,) = Reduction().sum_packed([counts, sums], [rows])
    assert summed_counts.dtype == torch.int64
    assert torch.equal(summed_counts, counts)
    assert summed.dtype == torch.float32
    assert torch.equal(summed, sums)
    assert joined.dtype == torch.float64
    assert torch.equal(joined, rows)


def test_packing_nothing_gives_nothing() -> None:
    assert Reduction().sum_packed([], []) == ([], [])


def _collectives() -> dict[str, object]:
    reduction = current_reduction()
    rank = reduction.rank
    own = torch.full((3,), rank + 1)
    rows = torch.full((2 + 3 * rank, 2), float(rank))
    packed = reduction.sum_packed([own, torch.tensor(0.5)], [torch.full((2, 3), rank, dtype=torch.int64)])
    return {
        "kind": type(reduction).__name__,
        "place": (rank, reduction.size),
        "sum": reduction.sum(own),
        "own": own,
        "rows": reduction.concatenate(rows),
        "packed": packed,
    }


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_sum_and_join_in_the_order_of_ranks(processes: int) -> None:
    results = run_in_processes(_collectives, processes)
    total = processes * (processes + 1) // 2
    expected_rows = torch.cat([torch.full((2 + 3 * rank, 2), float(rank)) for rank in range(processes)])
    for rank, result in enumerate(results):
        assert result["kind"] == ProcessGroupReduction.__name__
        assert result["place"] == (rank, processes)
        assert result["sum"].tolist() == [total] * 3
        assert result["own"].tolist() == [rank + 1] * 3, "the argument must not be written to"
        assert torch.equal(result["rows"], expected_rows)
        (integers, halves), (joined,) = result["packed"]
        assert integers.dtype == torch.int64
        assert integers.tolist() == [total] * 3
        assert halves.item() == processes / 2
        assert joined[:, 0].tolist() == [rank for rank in range(processes) for _ in range(2)]


def _empty_on_the_first() -> torch.Tensor:
    reduction = current_reduction()
    return reduction.concatenate(torch.ones(reduction.rank * 3, 5))


@pytest.mark.processes
def test_a_process_may_have_no_rows() -> None:
    assert [tuple(rows.shape) for rows in run_in_processes(_empty_on_the_first, 2)] == [(3, 5), (3, 5)]


def _single() -> str:
    return type(current_reduction()).__name__


@pytest.mark.processes
def test_a_group_of_one_process_needs_no_collectives() -> None:
    assert run_in_processes(_single, 1) == ["Reduction"]


def _seen_by_accelerate(offset: int) -> tuple[int, int]:
    accelerator = Accelerator()
    return accelerator.process_index + offset, accelerator.num_processes


def _fails_on_the_second() -> None:
    if torch_distributed.get_rank() == 1:
        raise KeyError("the second process")
    time.sleep(30)


@pytest.mark.processes
def test_helper_passes_arguments_and_accelerate_sees_the_group() -> None:
    assert run_in_processes(_seen_by_accelerate, 2, 10) == [(10, 2), (11, 2)]


@pytest.mark.processes
def test_helper_reports_the_process_that_failed_without_waiting_for_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="process 1 failed") as failure:
        run_in_processes(_fails_on_the_second, 2)
    assert "the second process" in str(failure.value)
    assert time.monotonic() - start < 25
