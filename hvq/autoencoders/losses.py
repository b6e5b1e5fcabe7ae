"""The training loss, equation (9): reconstruction + codebook + beta x commitment; of a plain VAE, equation (6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from hvq.autoencoders.reconstruction_losses import WeightedLoss, per_level_error, squared_error
from hvq.autoencoders.stack import AutoencoderResult
from hvq.errors import ConfigurationError


class AdversarialTerm(Protocol):
    """A term of the reconstruction loss that weighs itself by the others."""

    def __call__(self, result: AutoencoderResult, images: Tensor, others: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted term, and what the log is told.

        Args:
            result: of the autoencoder.
            images: `[B, C, H, W]` in [-1, 1], which it was to reconstruct.
            others: the weighted sum of the other terms, with its graph.
        """
        ...


class AutoencoderLoss:
    """Weighs the terms of equation (9); each is a mean over positions and dimensions, and is summed over levels.

    Of a plain VAE, with a Gaussian bottleneck, the terms are those of the bound in equation (6), and `kl`, in nats per
    position, is a mean over positions alone.

    Args:
        reconstruction: terms of the reconstruction loss by name; the mean squared error alone by default.
        commitment_weight: beta; it multiplies the commitment loss alone, which moves the encoder alone.
        codebook_weight: of the codebook loss, which moves the codebook alone, where codebooks learn by gradient.
        entropy_weight: of the entropy terms of lookup-free quantizers.
        kl_weight: of the divergence from the prior, in nats per position: from the uniform one, of Gumbel quantizers;
            from the standard normal one, of Gaussian bottlenecks, where `hvq.quantizers.elbo_weight` gives it.
        adversary: a further term, which is trained against the autoencoder.

    Raises:
        ConfigurationError: where there is no reconstruction loss.
    """

    def __init__(
        self,
        *,
        reconstruction: Mapping[str, WeightedLoss] | None = None,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        entropy_weight: float = 0.1,
        kl_weight: float = 5e-4,
        adversary: AdversarialTerm | None = None,
    ) -> None:
        terms = {"pixels": WeightedLoss(1.0, squared_error)} if reconstruction is None else dict(reconstruction)
        if not terms:
            raise ConfigurationError("reconstruction must name at least one term; received none")
        self.reconstruction, self.adversary = terms, adversary
        self.weights = {
            "commitment": commitment_weight,
            "codebook": codebook_weight,
            "entropy": entropy_weight,
            "kl": kl_weight,
        }

    @property
    def needs_prefixes(self) -> bool:
        """Whether the model is to be called with `prefixes`."""
        return any(term.loss is per_level_error for term in self.reconstruction.values())

    def __call__(self, result: AutoencoderResult, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, float32 or float64, and what it is made of, by name.

        Returns:
            The total, and `reconstruction`, the weighted sum of its terms but for the adversary's; where there are
            several, each unweighted as `reconstruction.<name>`; and the unweighted terms of the quantizers, summed over
            levels.
        """
        parts = {name: term.loss(result, images) for name, term in self.reconstruction.items()}
        reconstruction = torch.stack([self.reconstruction[name].weight * value for name, value in parts.items()]).sum()
        terms = {"reconstruction": reconstruction, **_summed_over_levels(result)}
        total = torch.stack([self.weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        several = len(parts) > 1 or self.adversary is not None
        if self.adversary is not None:
            term, told = self.adversary(result, images, reconstruction)
            total, terms = total + term, terms | told
        if several:
            terms |= {f"reconstruction.{name}": value for name, value in parts.items()}
        return total, {name: value.detach() for name, value in terms.items()}


def _summed_over_levels(result: AutoencoderResult) -> dict[str, Tensor]:
    """The loss terms of all quantizers."""
    terms: dict[str, Tensor] = {}
    for level in result.levels.values():
        for name, value in level.losses.items():
            terms[name] = terms[name] + value if name in terms else value
    return terms
