"""The codebook step, which stands beside the optimizer's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.quantizers.base import Quantizer, QuantizerResult
from hvq.quantizers.codebook import Codebook, CodebookStatistics, join_statistics, take_turns


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
        # By level name and codebook, the statistics of each micro-batch.
        self._collected: dict[str, list[list[CodebookStatistics]]] = {}

    def add(self, results: Mapping[str, QuantizerResult]) -> None:
        """Count one micro-batch: the results of a forward in training, by level name."""
        for name, result in results.items():
            if result.statistics:
                collected = self._collected.setdefault(name, [[] for _ in result.statistics])
                for parts, statistics in zip(collected, result.statistics, strict=True):
                    parts.append(statistics)

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
        names = [name for name in self.quantizers if name in self._collected]
        parts = [parts for name in names for parts in self._collected[name]]
        owners = [(name, codebook) for name in names for codebook in self.quantizers[name].codebooks]
        revivals: dict[str, Tensor] = {}
        for (name, codebook), statistics in zip(owners, _sum(parts, reduction or Reduction()), strict=True):
            revived = codebook.apply_statistics(statistics)
            self._reset_moments(codebook, revived)
            revivals[name] = revivals.get(name, 0) + revived.sum()
        for quantizer in self.quantizers.values():
            quantizer.advance()
        self.discard()
        return revivals

    def _reset_moments(self, codebook: Codebook, revived: Tensor) -> None:
        vectors = codebook.vectors
        if self.optimizer is None or not isinstance(vectors, nn.Parameter):
            return
        state: dict[str, Any] = self.optimizer.state.get(vectors, {})
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == vectors.shape:
                value.masked_fill_(revived.unsqueeze(1), 0)


def _sum(parts: list[list[CodebookStatistics]], reduction: Reduction) -> list[CodebookStatistics]:
    """The statistics of each codebook over its micro-batches and all processes."""
    merged = [join_statistics(statistics) for statistics in parts]
    sums = [tensor for statistics in merged for tensor in (statistics.counts, statistics.sums)]
    # Processes give an even share of candidates each.
    shares = [part.candidates[: -(-len(part.candidates) // reduction.size)] for part in merged]
    totals, candidates = reduction.sum_packed(sums, shares)
    return [
        CodebookStatistics(totals[2 * i], totals[2 * i + 1], take_turns(candidates[i], reduction.size))
        for i in range(len(merged))
    ]
