"""The codebook step, which stands beside the optimizer's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.quantizers.base import CodebookStatistics, Quantizer, QuantizerResult


class CodebookStep:
    """Collects the statistics of micro-batches, and applies them to every level's codebook in one step.

    So k micro-batches equal one batch k times as large, processes equal one process on the joined batch, recomputed
    activations count once, and a skipped optimizer step leaves the codebooks alone.

    Args:
        quantizers: by level name.
        optimizer: of codebooks that learn by gradient; the moments of revived codes are reset in it.

    >>> from hvq.quantizers import VectorQuantizer
    >>> quantizer = VectorQuantizer(codebook_size=3, code_dimension=2)
    >>> codebooks = CodebookStep({"top": quantizer})
    >>> codebooks.add({"top": quantizer(torch.randn(5, 2, 7))})
    >>> codebooks.step().keys()
    dict_keys(['top'])
    """

    def __init__(self, quantizers: Mapping[str, Quantizer], optimizer: torch.optim.Optimizer | None = None) -> None:
        self.quantizers = dict(quantizers)
        self.optimizer = optimizer
        self._collected: dict[str, list[CodebookStatistics]] = {}

    def add(self, results: Mapping[str, QuantizerResult]) -> None:
        """Count one micro-batch: the results of a forward in training, by level name."""
        for name, result in results.items():
            if result.statistics is not None:
                self._collected.setdefault(name, []).append(result.statistics)

    def discard(self) -> None:
        """Forget what was added, as for an optimizer step that is skipped."""
        self._collected.clear()

    @torch.no_grad()
    def step(self, reduction: Reduction | None = None) -> dict[str, Tensor]:
        """Sum over micro-batches and processes in one collective, learn, revive, clear.

        Args:
            reduction: over the processes that train together; one process by default.

        Returns:
            How many codes of each level were revived, int64 scalars.
        """
        reduction = reduction or Reduction()
        names = [name for name in self.quantizers if name in self._collected]
        merged = [_merge(self._collected[name], reduction.size) for name in names]
        sums = [tensor for statistics in merged for tensor in (statistics.counts, statistics.sums)]
        totals, candidates = reduction.sum_packed(sums, [statistics.candidates for statistics in merged])
        revivals: dict[str, Tensor] = {}
        for i, name in enumerate(names):
            quantizer = self.quantizers[name]
            revived = quantizer.apply_statistics(totals[2 * i], totals[2 * i + 1], candidates[i])
            self._reset_moments(quantizer, revived)
            revivals[name] = revived.sum()
        self.discard()
        return revivals

    def _reset_moments(self, quantizer: Quantizer, revived: Tensor) -> None:
        codebook = getattr(quantizer, "codebook", None)
        if self.optimizer is None or not isinstance(codebook, nn.Parameter):
            return
        state: dict[str, Any] = self.optimizer.state.get(codebook, {})
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == codebook.shape:
                value.masked_fill_(revived.unsqueeze(1), 0)


def _merge(parts: list[CodebookStatistics], num_processes: int) -> CodebookStatistics:
    """The statistics of the joined micro-batches, with this process's even share of revival candidates."""
    wanted = -(-len(parts[0].candidates) // num_processes)
    candidates = torch.cat([part.candidates for part in parts])
    return CodebookStatistics(
        counts=torch.stack([part.counts for part in parts]).sum(dim=0),
        sums=torch.stack([part.sums for part in parts]).sum(dim=0),
        candidates=candidates[:: len(parts)][:wanted],
    )
