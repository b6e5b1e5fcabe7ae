"""Usage and perplexity of every codebook over the steps between two lines of the log."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hvq.distributed import Reduction
from hvq.histograms import perplexity, usage
from hvq.quantizers import QuantizerResult


class CodeWindow:
    """Counts codes as training goes, from the counts that every forward returns."""

    def __init__(self) -> None:
        self._counts: dict[str, Tensor] = {}

    def add(self, results: Mapping[str, QuantizerResult]) -> None:
        """Count one micro-batch."""
        for name, result in results.items():
            counts = result.counts
            # A Gaussian level has no codes to count; what a checkpoint gave back lies on the CPU.
            if counts.numel():
                known = self._counts[name].to(counts.device) if name in self._counts else 0
                self._counts[name] = counts + known

    def numbers(self, reduction: Reduction) -> dict[str, float]:
        """`perplexity.<level>` and `usage.<level>` over all processes; the window begins anew."""
        totals, _ = reduction.sum_packed(list(self._counts.values()), [])
        numbers: dict[str, float] = {}
        for name, counts in zip(self._counts, totals, strict=True):
            numbers[f"perplexity.{name}"] = perplexity(counts)
            numbers[f"usage.{name}"] = usage(counts)
        self._counts.clear()
        return numbers

    def kept_tensors(self, reduction: Reduction) -> dict[str, Tensor]:
        """Counts so far, over all processes."""
        totals, _ = reduction.sum_packed(list(self._counts.values()), [])
        return dict(zip(self._counts, totals, strict=True))

    def take_back(self, tensors: dict[str, Tensor], reduction: Reduction) -> None:
        """Go on counting; one process holds what all have counted."""
        self._counts = {
            name: counts if reduction.rank == 0 else counts.new_zeros(counts.shape) for name, counts in tensors.items()
        }
