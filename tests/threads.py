"""Several "processes" that are threads of this one, for code that takes its collectives as an argument."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from hvq.distributed import Reduction

Result = TypeVar("Result")


class _Table:
    """Where each thread lays down its tensor, and takes up those of all."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size, timeout=60)
        self.slots: list[Tensor] = [torch.zeros(0)] * size

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self.slots[rank] = tensor
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything


class _ThreadReduction(Reduction):
    def __init__(self, rank: int, table: _Table) -> None:
        self.rank, self.size = rank, len(table.slots)
        self._table = table

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._table.exchange(self.rank, tensor)).sum(dim=0)

    def concatenate(self, rows: Tensor) -> Tensor:
        return torch.cat(self._table.exchange(self.rank, rows))

    def first(self, tensor: Tensor) -> Tensor:
        return self._table.exchange(self.rank, tensor)[0]


def run_in_threads(function: Callable[[Reduction], Result], size: int) -> list[Result]:
    """What `function(reduction)` returns in each of several threads, in the order of ranks."""
    table = _Table(size)

    def call(rank: int) -> Result:
        try:
            return function(_ThreadReduction(rank, table))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, range(size)))
