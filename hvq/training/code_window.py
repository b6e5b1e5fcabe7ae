"""Usage and perplexity of every codebook over the steps between two lines of the log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hvq.distributed import Reduction
from hvq.quantizers import Quantizer, QuantizerResult


class CodeWindow:
    """Counts codes as training goes, from the statistics that forward returns anyway; frozen levels have codes alone.

    Args:
        quantizers: by level name.
    """

    def __init__(self, quantizers: Mapping[str, Quantizer]) -> None:
        self._sizes = {name: quantizer.codebook_size for name, quantizer in quantizers.items()}
        self._counts: dict[str, Tensor] = {}

    def add(self, results: Mapping[str, QuantizerResult]) -> None:
        """Count one micro-batch."""
        for name, result in results.items():
            if result.statistics is None:
                counts = torch.bincount(result.codes.detach().flatten(), minlength=self._sizes[name])
            else:
                counts = result.statistics.counts
            self._counts[name] = self._counts[name] + counts if name in self._counts else counts

    def numbers(self, reduction: Reduction) -> dict[str, float]:
        """`perplexity.<level>` and `usage.<level>` over all processes; the window begins anew."""
        totals, _ = reduction.sum_packed(list(self._counts.values()), [])
        numbers: dict[str, float] = {}
        for name, counts in zip(self._counts, totals, strict=True):
            shares = counts.double() / counts.sum()
            numbers[f"perplexity.{name}"] = float(torch.special.entr(shares).sum().exp())
            numbers[f"usage.{name}"] = float((counts > 0).double().mean())
        self._counts.clear()
        return numbers
