"""Collectives as an argument: whoever sums over processes is handed a `Reduction`; on one process it does nothing.

Rooms below training never ask for a rank. They take a `Reduction`, by default the one that stands for a single
process; training hands in the one of the running process group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as torch_distributed
from torch import Tensor


class Reduction:
    """Sums and joins over the processes of one run; this base class stands for a run of one process.

    >>> Reduction().sum(torch.tensor([1, 2])).tolist()
    [1, 2]
    """

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes; the same tensor on every process."""
        return tensor

    def concatenate(self, rows: Tensor) -> Tensor:
        """Rows `[n, ...]` of every process in the order of ranks; `n` may differ between processes."""
        return rows

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, on every process."""
        return tensor

    def sum_packed(self, sums: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Sum some tensors and concatenate the rows of others, in a single collective.

        Everything travels as one float64 vector, in which integers below 2^53 and float32 are exact.

        Args:
            sums: tensors to add up over processes, of the same shapes everywhere.
            rows: tensors `[n, ...]` to concatenate in the order of ranks, of the same shapes everywhere.
        """
        slots = [torch.zeros(self.size, *t.shape, dtype=torch.float64, device=t.device) for t in rows]
        for slot, tensor in zip(slots, rows, strict=True):
            slot[self.rank] = tensor
        parts = [*sums, *slots]
        if not parts:
            return [], []
        total = self.sum(torch.cat([part.to(torch.float64).flatten() for part in parts]))
        pieces = [
            piece.view(part.shape)
            for piece, part in zip(total.split([part.numel() for part in parts]), parts, strict=True)
        ]
        summed = [piece.to(t.dtype) for piece, t in zip(pieces[: len(sums)], sums, strict=True)]
        joined = [piece.flatten(0, 1).to(t.dtype) for piece, t in zip(pieces[len(sums) :], rows, strict=True)]
        return summed, joined


class ProcessGroupReduction(Reduction):
    """`Reduction` over the default process group of `torch.distributed`."""

    def __init__(self) -> None:
        self.rank = torch_distributed.get_rank()
        self.size = torch_distributed.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        total = tensor.clone()
        torch_distributed.all_reduce(total, op=torch_distributed.ReduceOp.SUM)
        return total

    def first(self, tensor: Tensor) -> Tensor:
        """What the first process holds."""
        shared = tensor.clone()
        torch_distributed.broadcast(shared, src=0)
        return shared

    def concatenate(self, rows: Tensor) -> Tensor:
        """Rows of all processes; shorter ones are padded for the transfer and cut back."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        lengths[self.rank] = rows.shape[0]
        counts = self.sum(lengths).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        torch_distributed.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def current_reduction() -> Reduction:
    """The reduction of the running process group, or the one of a single process where there is none."""
    running = torch_distributed.is_available() and torch_distributed.is_initialized()
    return ProcessGroupReduction() if running and torch_distributed.get_world_size() > 1 else Reduction()
