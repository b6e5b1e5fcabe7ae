"""Finite scalar quantization: a few numbers, each rounded to a few levels (arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hvq.errors import ConfigurationError
from hvq.quantizers.base import FlatResult, Quantizer
from hvq.quantizers.estimators import straight_through
from hvq.quantizers.projection import projections

# Room between the outermost level and the bound, as in the paper, so that it is reached before the tangent saturates.
_MARGIN = 1e-3
# Levels of a number that a factorization takes; the paper advises against fewer than 5, and 2 to 4 are a last resort.
_FEWEST, _MOST = 5, 16


class FiniteScalarQuantizer(Quantizer):
    """Numbers bounded by a tangent and rounded to whole levels; there is no codebook that could collapse, and no loss.

    Number i of a latent takes L_i values, so K = L_1 L_2 ...; the code is their mixed-radix number, the first number
    counting in ones. Where the latents have another dimension than there are levels, learned maps lead there and back.

    Args:
        codebook_size: K.
        code_dimension: D, the length of the vectors.
        levels: L_1, L_2, ...; None factorizes K into 8s, or what comes nearest.

    Shapes:
        latents and vectors `[B, D, *grid]`, codes int64 `[B, *grid]`; the numbers of a code lie in [-1, 1].

    Raises:
        ConfigurationError: where the levels do not multiply to K, or K has no such factors.

    >>> quantizer = FiniteScalarQuantizer(codebook_size=35, code_dimension=2, levels=(5, 7))
    >>> quantizer.lookup(torch.tensor([0, 34])).tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, *, codebook_size: int, code_dimension: int, levels: Sequence[int] | None = None) -> None:
        super().__init__(codebook_size=codebook_size, code_dimension=code_dimension)
        chosen = list(levels) if levels is not None else choose_levels(codebook_size)
        if min(chosen, default=0) < 2 or math.prod(chosen) != codebook_size:
            raise ConfigurationError(
                f"levels must be 2 or more each and multiply to codebook_size; {chosen} make {math.prod(chosen)}, "
                f"not {codebook_size}: set one to the other"
            )
        self.project_in, self.project_out = projections(code_dimension, len(chosen))
        # Neighbouring values of a number are 2 / (L - 1) apart, so that a residual is L - 1 times smaller.
        self.residual_gain = float(min(chosen) - 1)
        self.register_buffer("levels", torch.tensor(chosen), persistent=False)
        self.register_buffer(
            "basis", torch.tensor([math.prod(chosen[:i]) for i in range(len(chosen))]), persistent=False
        )

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Quantize latents `[N, D]`; there are no losses that `weights` could leave positions out of."""
        bounded = self._bound(self.project_in(latents))
        digits = self._round(bounded)
        # Straight through the rounding alone: the bound has its own gradient.
        values = straight_through(bounded / self._half_width(), self._values(digits))
        return FlatResult(vectors=self.project_out(values), codes=self._codes(digits), losses={})

    def assign(self, latents: Tensor) -> Tensor:
        """Codes `[N]` of latents `[N, D]`."""
        return self._codes(self._round(self._bound(self.project_in(latents))))

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N]`."""
        digits = codes.unsqueeze(1) // self.basis % self.levels
        return self.project_out(self._values(digits))

    def mean_vector(self) -> Tensor:
        """`[D]`, that of the middle of all levels."""
        shift = (self.levels % 2 == 0) / (2 * self._half_width())
        return self.project_out(-shift.to(self.precision.dtype))

    def _half_width(self) -> Tensor:
        return self.levels.div(2, rounding_mode="floor").to(self.precision.dtype)

    def _bound(self, latents: Tensor) -> Tensor:
        """Numbers whose rounding is one of the L levels -⌊L / 2⌋ .. ⌈L / 2⌉ - 1."""
        half_range = (self.levels - 1).to(latents.dtype) * (1 + _MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(latents.dtype)
        shift = torch.atanh(offset / half_range)
        return torch.tanh(latents + shift) * half_range - offset

    def _round(self, bounded: Tensor) -> Tensor:
        """Digits int64 `[N, d]`, from 0 to L - 1; what is not finite becomes some digit."""
        lowest = self.levels.div(2, rounding_mode="floor")
        digits = bounded.nan_to_num().round().to(torch.int64) + lowest
        return torch.minimum(digits.clamp(min=0), self.levels - 1)

    def _values(self, digits: Tensor) -> Tensor:
        """Numbers in [-1, 1]."""
        return (digits - self.levels.div(2, rounding_mode="floor")).to(self.precision.dtype) / self._half_width()

    def _codes(self, digits: Tensor) -> Tensor:
        return (digits * self.basis).sum(dim=1)


def choose_levels(codebook_size: int) -> list[int]:
    """Levels that multiply to a codebook size: as near to 8 each as its factors allow.

    Args:
        codebook_size: K.

    Raises:
        ConfigurationError: where it has a prime factor that is too large.

    >>> choose_levels(512), choose_levels(1000), choose_levels(2048)
    ([8, 8, 8], [10, 10, 10], [8, 16, 16])
    """
    found = [levels for count in range(1, 12) for levels in _factorizations(codebook_size, count, _FEWEST)]
    found = found or [levels for count in range(1, 12) for levels in _factorizations(codebook_size, count, 2)]
    if not found:
        raise ConfigurationError(
            f"no levels of 2 to {_MOST} multiply to codebook_size {codebook_size}; powers of two always work, and the "
            "paper's codebooks are 240, 1000, 4375, 15360 and 64000"
        )
    return min(found, key=lambda levels: sum(abs(math.log(level / 8)) for level in levels) / len(levels))


def _factorizations(number: int, count: int, fewest: int) -> list[list[int]]:
    """Ascending lists of `count` factors from `fewest` to 16 that multiply to a number."""
    if count == 1:
        return [[number]] if fewest <= number <= _MOST else []
    return [
        [first, *rest]
        for first in range(fewest, _MOST + 1)
        if number % first == 0 and first**count <= number
        for rest in _factorizations(number // first, count - 1, first)
    ]
