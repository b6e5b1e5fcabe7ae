"""Lookup-free quantization: the signs of a few numbers (arXiv 2310.05737), also on the sphere (arXiv 2406.07548)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hvq.errors import ConfigurationError
from hvq.quantizers.base import FlatResult, Quantizer
from hvq.quantizers.estimators import straight_through_with_errors
from hvq.quantizers.losses import masked_mean
from hvq.quantizers.projection import projections
from hvq.tracing import is_exporting

# Bits of one code; a histogram over them is as large as the codebook would be.
_MOST_BITS = 22
# Probabilities held at a time for the entropy of the mean.
_CHUNK_ELEMENTS = 1 << 22


class LookupFreeQuantizer(Quantizer):
    """Each number becomes its sign, and the signs are the bits of the code: the codebook is {-1, 1}^b, never stored.

    Two terms keep codes in use: `commitment` draws numbers to their signs, and `entropy` is the mean entropy of
    p(c | z) less `diversity` times the entropy of the mean of p(c | z), in nats per position; p(c | z) ∝
    exp(-τ ‖z - c‖²). As ‖z - c‖² is a sum over bits, p(c | z) is a product over bits, and its entropy the sum of
    theirs, exactly. The mean is no such product; but with the bits cut into two halves it is the matrix product of the
    halves' probabilities, summed over positions, so that N x 2^(b/2) numbers take the place of N x 2^b. Each process
    looks at the mean over its own batch.

    On the sphere (binary spherical quantization), latents are divided by their norm and the numbers of a code are
    ±1 / √d, so that codes lie there too; the distance in p(c | z) is then in units of that number.

    Args:
        codebook_size: K = 2^b, of each code.
        code_dimension: D, the length of the vectors.
        groups: G, codes per position; where D differs from d = G b, learned maps lead there and back.
        spherical: put latents on the unit sphere first.
        inverse_temperature: τ.
        diversity: weight of the entropy of the mean within the entropy term.

    Shapes:
        latents and vectors `[B, D, *grid]`, codes int64 `[B, *grid]`, or `[B, *grid, G]` with several groups.

    Raises:
        ConfigurationError: where K is not a power of two, or an argument is out of range.

    >>> quantizer = LookupFreeQuantizer(codebook_size=8, code_dimension=3)
    >>> quantizer.assign(torch.tensor([[0.1, -2.0, 3.0]])).tolist(), quantizer.lookup(torch.tensor([5])).tolist()
    ([5], [[1.0, -1.0, 1.0]])
    """

    powers: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dimension: int,
        groups: int = 1,
        spherical: bool = False,
        inverse_temperature: float = 1.0,
        diversity: float = 1.0,
    ) -> None:
        super().__init__(codebook_size=codebook_size, code_dimension=code_dimension, codes_per_position=groups)
        bits = codebook_size.bit_length() - 1
        if bits < 1 or codebook_size != 2**bits or bits > _MOST_BITS:
            raise ConfigurationError(
                f"signs make a codebook_size of a power of two, from 2 to 2^{_MOST_BITS}; received {codebook_size}: "
                f"take {2 ** max(1, min(bits, _MOST_BITS))}" + ", or several groups" * (bits > _MOST_BITS)
            )
        if inverse_temperature <= 0 or diversity < 0:
            raise ConfigurationError(
                "inverse_temperature must be positive and diversity not negative; "
                f"received {inverse_temperature} and {diversity}"
            )
        self.bits = bits
        self.spherical = spherical
        self.inverse_temperature = inverse_temperature
        self.diversity = diversity
        self.magnitude = (groups * bits) ** -0.5 if spherical else 1.0
        self.project_in, self.project_out = projections(code_dimension, groups * bits)
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Quantize latents `[N, D]`; those whose `weights` are False count in no loss."""
        inner = self._inner(latents)
        signs = self._signs(inner)
        vectors, squared_errors = straight_through_with_errors(inner, self._values(signs))
        losses = {"commitment": masked_mean(squared_errors, weights) / inner.shape[1]}
        losses["entropy"] = self._entropy_term(inner / self.magnitude, weights)
        return FlatResult(vectors=self.project_out(vectors), codes=self._codes(signs), losses=losses)

    def assign(self, latents: Tensor) -> Tensor:
        """Codes `[N]` or `[N, G]` of latents `[N, D]`."""
        return self._codes(self._signs(self._inner(latents)))

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N]` or `[N, G]`."""
        columns = codes.view(codes.shape[0], self.codes_per_position, 1)
        return self.project_out(self._values((columns // self.powers % 2 == 1).flatten(1)))

    def mean_vector(self) -> Tensor:
        """`[D]`, that of all codes: the origin, mapped back."""
        return self.project_out(self.precision.new_zeros(self.codes_per_position * self.bits))

    # Numbers near their signs leave residuals of half their size.
    residual_gain = 2.0

    def no_residual_reason(self) -> str | None:
        """Why this quantizer cannot stand in a row of residual quantizers; None where it can."""
        if self.spherical:
            return "vectors of length one cannot become smaller with the residuals; set spherical to false"
        if not isinstance(self.project_in, nn.Identity):
            return f"each would project the gradient once more; set code_dimension to {self.bits}, the bits of a code"
        return super().no_residual_reason()

    def _inner(self, latents: Tensor) -> Tensor:
        inner = self.project_in(latents)
        return functional.normalize(inner, dim=1) if self.spherical else inner

    def _signs(self, inner: Tensor) -> Tensor:
        """bool `[N, G b]`."""
        return inner > 0

    def _values(self, signs: Tensor) -> Tensor:
        return torch.where(signs, self.magnitude, -self.magnitude).to(self.precision.dtype)

    def _codes(self, signs: Tensor) -> Tensor:
        codes = (signs.view(-1, self.codes_per_position, self.bits) * self.powers).sum(dim=2)
        return codes if self.codes_per_position > 1 else codes.squeeze(1)

    def _entropy_term(self, numbers: Tensor, weights: Tensor | None) -> Tensor:
        """‖z - 1‖² and ‖z + 1‖² of one number differ by 4 z, so that its bit is set with probability σ(4 τ z)."""
        logits = 4 * self.inverse_temperature * numbers
        of_bits = functional.softplus(logits) - logits * logits.sigmoid()
        of_samples = masked_mean(of_bits.sum(dim=1), weights)
        groups = logits.split(self.bits, dim=1)
        of_means = [_entropy(mean_probabilities(group, weights)) for group in groups]
        return of_samples - self.diversity * torch.stack(of_means).sum()


def _entropy(probabilities: Tensor) -> Tensor:
    # The slope of -p log p has no bound at 0.
    return -(probabilities * probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()).sum()


def mean_probabilities(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Probabilities `[2^a, 2^(b - a)]` of all codes of b independent bits, averaged over the positions that count.

    Args:
        logits: `[N, b]`, of each bit being set.
        weights: bool `[N]`.
    """
    left, right = logits.split([logits.shape[1] // 2, logits.shape[1] - logits.shape[1] // 2], dim=1)
    counts = logits.new_ones(logits.shape[0], 1) if weights is None else weights.to(logits.dtype).unsqueeze(1)
    rows = max(1, _CHUNK_ELEMENTS >> right.shape[1])
    if is_exporting() or len(logits) <= rows:
        total = _joint(left, right, counts)
    else:
        # What a chunk needs for its gradient is made again in the backward pass.
        parts = zip(left.split(rows), right.split(rows), counts.split(rows), strict=True)
        total = torch.stack([checkpoint(_joint, *part, use_reentrant=False) for part in parts]).sum(dim=0)
    return total / counts.sum().clamp(min=1)


def _joint(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    return (_products(left) * counts).T @ _products(right)


def _products(logits: Tensor) -> Tensor:
    """Probabilities `[N, 2^m]` of all settings of m independent bits."""
    products = logits.new_ones(logits.shape[0], 1)
    for bit in logits.sigmoid().unbind(dim=1):
        products = torch.stack([products * (1 - bit).unsqueeze(1), products * bit.unsqueeze(1)], dim=1).flatten(1)
    return products
