"""Residual quantization: each quantizer takes what the ones before left over (arXiv 2107.03312, arXiv 2203.01941)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.quantizers.base import FlatResult, Quantizer
from hvq.quantizers.codebook import Codebook, CodebookStatistics, join_statistics


class ResidualQuantizer(Quantizer):
    """G quantizers in a row: the first takes the latent, each next one what is left, and their vectors add up.

    Every quantizer has the losses of the residual it sees, and with them moves the encoder; `losses` are their means,
    so that beta means the same for any G. The gradient at the sum reaches the latents once, unchanged. Of kinds without
    losses, whose gradient is not that of the identity, it goes through the row by the chain rule.

    Kinds without a codebook have a fixed scale: what reaches quantizer i (from 0) is multiplied by the i-th power of
    its `residual_gain`, and its vectors are divided by it.

    Args:
        quantizers: one for each place in the row, or a single one that takes all places, whose codebook is then shared
            (RQ-VAE); of one code per position each.
        codes_per_position: G; None for as many as there are quantizers.
        dropout: chance that a position is left to the first n quantizers alone, n uniform from 1 to G - 1, while
            training (SoundStream). The others do not count it; their codes are reported all the same.

    Shapes:
        latents and vectors `[B, D, *grid]`, codes int64 `[B, *grid, G]`, the first quantizer's first.

    Raises:
        ConfigurationError: where the quantizers differ in size, or do not go together with residuals.

    >>> from hvq.quantizers.vector import VectorQuantizer
    >>> layers = [VectorQuantizer(codebook_size=5, code_dimension=3) for _ in range(2)]
    >>> ResidualQuantizer(quantizers=layers)(torch.randn(2, 3, 7)).codes.shape
    torch.Size([2, 7, 2])
    """

    def __init__(
        self, *, quantizers: Sequence[Quantizer], codes_per_position: int | None = None, dropout: float = 0.0
    ) -> None:
        number = len(quantizers) if codes_per_position is None else codes_per_position
        _check(quantizers, number, dropout)
        super().__init__(
            codebook_size=quantizers[0].codebook_size,
            code_dimension=quantizers[0].code_dimension,
            codes_per_position=number,
        )
        self.dropout = dropout
        self.quantizers = nn.ModuleList(quantizers)

    @property
    def shared(self) -> bool:
        """Whether one quantizer takes all places in the row."""
        return len(self.quantizers) < self.codes_per_position

    @property
    def codebooks(self) -> tuple[Codebook, ...]:
        """One for each place in the row; a single one where it is shared."""
        own: list[Quantizer] = list(self.quantizers)  # type: ignore[arg-type]  # ModuleList is typed as any module
        return tuple(codebook for quantizer in own for codebook in quantizer.codebooks)

    def learned_vectors(self) -> list[Tensor]:
        """Those of each place in the row; once where they are shared."""
        own: list[Quantizer] = list(self.quantizers)  # type: ignore[arg-type]  # ModuleList is typed as any module
        return [vectors for quantizer in own for vectors in quantizer.learned_vectors()]

    @property
    def starts_from_latents(self) -> bool:
        """Whether any of the quantizers does."""
        return any(quantizer.starts_from_latents for quantizer in self._row())

    @property
    def initialized(self) -> bool:
        """Whether all quantizers in the row are."""
        return all(quantizer.initialized for quantizer in self._row())

    def _row(self) -> list[Quantizer]:
        own: list[Quantizer] = list(self.quantizers)  # type: ignore[arg-type]
        return own * self.codes_per_position if self.shared else own

    # --- vectors to codes and back ---

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Quantize latents `[N, D]`; those whose `weights` are False count in no loss and no statistics."""
        places = self._places(latents)
        residual, vectors = latents, torch.zeros_like(latents)
        results: list[FlatResult] = []
        for i, quantizer in enumerate(self._row()):
            kept = None if places is None else places > i
            result = quantizer.quantize(residual * quantizer.residual_gain**i, _both(weights, kept))
            step = result.vectors / quantizer.residual_gain**i
            step = step if kept is None else torch.where(kept.unsqueeze(1), step, 0.0)
            if not result.losses:
                vectors, residual = vectors + step, residual - step
            else:
                # The residual's own gradient is taken out of the sum, and stays in the losses.
                vectors = vectors + (step if i == 0 else step + (residual.detach() - residual))
                residual = residual - step.detach()
            results.append(result)
        return FlatResult(
            vectors=vectors,
            codes=torch.stack([result.codes for result in results], dim=1),
            losses={name: torch.stack([r.losses[name] for r in results]).mean() for name in results[0].losses},
            statistics=self._statistics(results),
        )

    def assign(self, latents: Tensor) -> Tensor:
        """Codes `[N, G]` of latents `[N, D]`."""
        return torch.stack([codes for codes, _ in self._walk(latents)], dim=1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N, G]`; of the first columns alone, what the first quantizers make of it."""
        vectors = self.precision.new_zeros(codes.shape[0], self.code_dimension)
        for i, (quantizer, column) in enumerate(zip(self._row(), codes.unbind(dim=1), strict=False)):
            vectors = vectors + quantizer.lookup(column) / quantizer.residual_gain**i
        return vectors

    def mean_vector(self) -> Tensor:
        """`[D]`, the sum of the quantizers' mean vectors."""
        means = [quantizer.mean_vector() / quantizer.residual_gain**i for i, quantizer in enumerate(self._row())]
        return torch.stack(means).sum(dim=0)

    def _walk(self, latents: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each place in the row, the codes it gives and the residual it sees."""
        found = []
        residual = latents
        for i, quantizer in enumerate(self._row()):
            gain = quantizer.residual_gain**i
            codes = quantizer.assign(residual * gain)
            found.append((codes, residual))
            residual = residual - quantizer.lookup(codes) / gain
        return found

    def _places(self, latents: Tensor) -> Tensor | None:
        """How many quantizers each position keeps, int64 `[N]`; None where all keep all."""
        if not self.dropout or not self.training:
            return None
        shape, device = (len(latents),), latents.device
        fewer = torch.randint(1, self.codes_per_position, shape, device=device)
        return torch.where(torch.rand(shape, device=device) < self.dropout, fewer, self.codes_per_position)

    # --- learning ---

    def _statistics(self, results: list[FlatResult]) -> list[CodebookStatistics]:
        statistics = [part for result in results for part in result.statistics]
        return [join_statistics(statistics)] if statistics and self.shared else statistics

    @torch.no_grad()
    def initialize(self, latents: Tensor, num_steps: float, reduction: Reduction) -> None:
        """Set codebooks by k-means, each over the residuals that it will see; a shared one over all of them."""
        if self.shared:
            (quantizer,) = set(self._row())
            quantizer.initialize(latents, num_steps, reduction)
            seen = torch.cat([residual for _, residual in self._walk(latents)])
            quantizer.initialize(seen, num_steps, reduction)
            return
        residual = latents
        for quantizer in self._row():
            quantizer.initialize(residual, num_steps, reduction)
            residual = residual - quantizer.lookup(quantizer.assign(residual))

    def advance(self) -> None:
        """Move on the schedules of the quantizers in the row."""
        for quantizer in set(self._row()):
            quantizer.advance()


def _both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _check(quantizers: Sequence[Quantizer], number: int, dropout: float) -> None:
    if not quantizers or number < 2 or len(quantizers) not in (1, number):
        raise ConfigurationError(
            "residual quantization takes two quantizers or more, or one for two places or more; "
            f"received {len(quantizers)} for {number}"
        )
    sizes = {(quantizer.codebook_size, quantizer.code_dimension) for quantizer in quantizers}
    if len(sizes) > 1:
        raise ConfigurationError(f"residual quantizers must have the same K and D; received {sorted(sizes)}")
    if not 0 <= dropout < 1:
        raise ConfigurationError(f"dropout must be in [0, 1); received {dropout}")
    for quantizer in quantizers:
        if reason := quantizer.no_residual_reason():
            raise ConfigurationError(f"this quantizer cannot take residuals: {reason}")
    if len(quantizers) == 1 and not list(quantizers[0].parameters()) and not quantizers[0].codebooks:
        raise ConfigurationError("a quantizer without a codebook has nothing to share; turn sharing off")
