"""The training loss, equation (9): reconstruction + codebook + beta x commitment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders.stack import AutoencoderResult
from hvq.errors import ConfigurationError


class AutoencoderLoss:
    """Weighs the terms of equation (9); each is a mean over positions and dimensions, and is summed over levels.

    Args:
        reconstruction: "mse" or "l1", on pixels in [-1, 1].
        commitment_weight: beta; it multiplies the commitment loss alone, which moves the encoder alone.
        codebook_weight: of the codebook loss, which moves the codebook alone, where codebooks learn by gradient.
        entropy_weight: of the entropy terms of lookup-free quantizers.
        kl_weight: of the divergence from the uniform prior, in nats per code, of Gumbel quantizers.

    Raises:
        ConfigurationError: where the reconstruction loss is unknown.
    """

    def __init__(
        self,
        *,
        reconstruction: Literal["mse", "l1"] = "mse",
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        entropy_weight: float = 0.1,
        kl_weight: float = 5e-4,
    ) -> None:
        if reconstruction not in ("mse", "l1"):
            raise ConfigurationError(f"reconstruction must be mse or l1; received {reconstruction}")
        self.reconstruction = reconstruction
        self.weights = {
            "commitment": commitment_weight,
            "codebook": codebook_weight,
            "entropy": entropy_weight,
            "kl": kl_weight,
        }

    def __call__(self, result: AutoencoderResult, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, float32 or float64, and its unweighted terms by name, summed over levels."""
        distance = functional.mse_loss if self.reconstruction == "mse" else functional.l1_loss
        # At least float32: under autocast, or cast to half, the decoder gives lower precision.
        precision = torch.promote_types(images.dtype, torch.float32)
        terms = {"reconstruction": distance(result.reconstruction.to(precision), images.to(precision))}
        for level in result.levels.values():
            for name, value in level.losses.items():
                terms[name] = terms[name] + value if name in terms else value
        total = torch.stack([self.weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        return total, {name: value.detach() for name, value in terms.items()}
