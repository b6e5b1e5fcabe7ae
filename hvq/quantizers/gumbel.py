"""The quantizer of the dVAE: codes drawn by Gumbel-softmax (arXiv 2102.12092, arXiv 1611.01144)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hvq.errors import ConfigurationError
from hvq.quantizers.base import FlatResult, Quantizer
from hvq.quantizers.losses import masked_mean
from hvq.tracing import is_exporting

# Probabilities held at a time; N x K of them is what the method asks for, but not all at once.
_CHUNK_ELEMENTS = 1 << 22


class GumbelQuantizer(Quantizer):
    """A distribution over codes; while training, a relaxed draw from it, and its most probable code otherwise.

    A learned map gives each latent K logits. In training its vector is the mixture of all codes' vectors, weighted by
    softmax((logits + Gumbel noise) / τ), which is a draw of one code where τ is small; τ follows a cosine from
    `start_temperature` to `end_temperature` over the optimizer steps that `advance` counts. The `kl` loss is that of
    q(c | z) = softmax(logits) to the uniform prior, log K - H(q), in nats per code: equation (7) with a posterior that
    is not one-hot.

    Args:
        codebook_size: K.
        code_dimension: D.
        start_temperature: τ at the first step.
        end_temperature: τ after the last step of the schedule; the default is the paper's 1 / 16.
        anneal_steps: of the schedule.
        hard: pass on the vector of the drawn code, with the gradient of the mixture.

    Shapes:
        latents and vectors `[B, D, *grid]`, codes int64 `[B, *grid]`, in training those that were drawn.

    Raises:
        ConfigurationError: where a temperature is not positive, or rises.

    >>> quantizer = GumbelQuantizer(codebook_size=5, code_dimension=3).eval()
    >>> result = quantizer(torch.randn(2, 3, 7))
    >>> torch.equal(quantizer.decode(result.codes), result.vectors), sorted(result.losses)
    (True, ['kl'])
    """

    steps: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dimension: int,
        start_temperature: float = 1.0,
        end_temperature: float = 0.0625,
        anneal_steps: int = 10_000,
        hard: bool = False,
    ) -> None:
        super().__init__(codebook_size=codebook_size, code_dimension=code_dimension)
        if not 0 < end_temperature <= start_temperature or anneal_steps < 1:
            raise ConfigurationError(
                "temperatures must be positive and not rise, over one step or more; "
                f"received {start_temperature} to {end_temperature} over {anneal_steps}"
            )
        self.start_temperature = start_temperature
        self.end_temperature = end_temperature
        self.anneal_steps = anneal_steps
        self.hard = hard
        self.logits = nn.Linear(code_dimension, codebook_size)
        self.vectors = nn.Parameter(torch.randn(codebook_size, code_dimension))
        self.register_buffer("steps", torch.tensor(0))

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """Quantize latents `[N, D]`; those whose `weights` are False count in no loss."""
        chunk = self._draw if self.training else self._decide
        # What a chunk needs for its gradient, its noise among it, is made again in the backward pass.
        parts = [
            checkpoint(chunk, part, use_reentrant=False) if torch.is_grad_enabled() else chunk(part)
            for part in self._parts(latents)
        ]
        vectors, codes, divergences = (torch.cat(column) for column in zip(*parts, strict=True))
        return FlatResult(vectors=vectors, codes=codes, losses={"kl": masked_mean(divergences, weights)})

    def assign(self, latents: Tensor) -> Tensor:
        """The most probable codes `[N]` of latents `[N, D]`; ties go to the lowest."""
        return torch.cat([self.logits(part).argmax(dim=1) for part in self._parts(latents)])

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `[N, D]` of codes `[N]`."""
        return functional.embedding(codes, self.vectors)

    def learned_vectors(self) -> list[Tensor]:
        """The vectors `[K, D]`."""
        return [self.vectors]

    def mean_vector(self) -> Tensor:
        """`[D]`, the mean of all vectors."""
        return self.vectors.mean(dim=0)

    def no_residual_reason(self) -> str | None:
        """Why this quantizer cannot stand in a row of residual quantizers."""
        return "its vectors are mixtures while training, which leave another residual than its codes do"

    @torch.no_grad()
    def advance(self) -> None:
        """One step on in the schedule of the temperature."""
        if not self.frozen:
            self.steps.add_(1)

    def temperature(self) -> Tensor:
        """τ after the steps so far: a cosine, as in appendix A.2 of the dVAE's paper."""
        done = (self.steps / self.anneal_steps).clamp(max=1)
        share = 0.5 * (1 + torch.cos(math.pi * done))
        return self.end_temperature + (self.start_temperature - self.end_temperature) * share

    def _parts(self, latents: Tensor) -> Sequence[Tensor]:
        # How many there are must not hang on the batch that something is exported with.
        return [latents] if is_exporting() else latents.split(max(1, _CHUNK_ELEMENTS // self.codebook_size))

    def _draw(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.logits(latents)
        # Two logarithms of a uniform number away from both its ends.
        uniform = torch.rand_like(logits).clamp(torch.finfo(logits.dtype).tiny, 1 - torch.finfo(logits.dtype).eps)
        shares = ((logits - (-uniform.log()).log()) / self.temperature().to(logits.dtype)).softmax(dim=1)
        codes = shares.argmax(dim=1)
        mixture = shares @ self.vectors
        if self.hard:
            drawn = self.lookup(codes)
            mixture = drawn.detach() + (mixture - mixture.detach())
        return mixture, codes, self._divergence(logits)

    def _decide(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Without noise; gradients reach the latents through the mixture, as they do in training."""
        logits = self.logits(latents)
        codes = logits.argmax(dim=1)
        chosen = self.lookup(codes)
        if torch.is_grad_enabled():
            mixture = (logits / self.temperature().to(logits.dtype)).softmax(dim=1) @ self.vectors
            chosen = chosen.detach() + (mixture - mixture.detach())
        return chosen, codes, self._divergence(logits)

    def _divergence(self, logits: Tensor) -> Tensor:
        """KL to the uniform prior, in nats, `[N]`."""
        log_shares = logits.log_softmax(dim=1)
        return math.log(self.codebook_size) + (log_shares.exp() * log_shares).sum(dim=1)
