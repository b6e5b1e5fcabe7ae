"""Implementations that `quality.py` trains side by side: one step on a batch, and images back from their codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from train_step import LATENT_LOSS_WEIGHT, PEER_FIELDS, peer_module

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    build_autoencoder,
    weights_channels_last,
)
from hvq.config import RunConfig
from hvq.data import Batch
from hvq.data.pixels import bytes_to_model
from hvq.quantizers import Quantizer
from hvq.quantizers.base import FlatResult
from hvq.training.autoencoder import kept_levels
from hvq.training.continuous_start import ContinuousStart
from hvq.training.optimization import Losses, Optimization

OWN, PACKAGE, PACKAGE_BEST, PEER = "hvq", "vqp", "vqp, best", "rosinality"
PACKAGE_OPTIONS: dict[str, dict[str, Any]] = {
    PACKAGE: {},
    # What its page and its users recommend: slow averages, a codebook that begins as k-means, dead codes replaced.
    PACKAGE_BEST: {"decay": 0.99, "kmeans_init": True, "threshold_ema_dead_code": 2},
}


@dataclass(frozen=True)
class Contender:
    """An implementation with fresh weights.

    Attributes:
        model: in training mode.
        begin: what comes before the first step, given batches.
        step: one optimizer step on a batch.
        restore: images `[B, 3, H, W]` in [-1, 1] to their reconstructions, and their codes by level.
    """

    model: nn.Module
    begin: Callable[[Iterable[Batch]], None]
    step: Callable[[Batch], None]
    restore: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


class PackageQuantizer(Quantizer):
    """The `VectorQuantize` of vector-quantize-pytorch, which learns in its own forward, in place of a quantizer of hvq.

    Args:
        codebook_size: K.
        code_dimension: D.
        options: of `VectorQuantize`; its defaults otherwise, its weight of the commitment loss among them.
    """

    def __init__(self, *, codebook_size: int, code_dimension: int, **options: Any) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__(codebook_size=codebook_size, code_dimension=code_dimension)
        self.package = VectorQuantize(dim=code_dimension, codebook_size=codebook_size, **options)

    def quantize(self, latents: Tensor, weights: Tensor | None) -> FlatResult:
        """All of it is the package's; its loss has its own weight already."""
        vectors, codes, loss = self.package(latents[None])
        return FlatResult(vectors[0], codes[0], {"package": loss.sum()})

    def assign(self, latents: Tensor) -> Tensor:
        """Codes."""
        return self.quantize(latents, None).codes

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors."""
        vectors: Tensor = self.package.get_codes_from_indices(codes)
        return vectors

    def mean_vector(self) -> Tensor:
        """Of all codes alike."""
        mean: Tensor = self.package.codebook.mean(0)
        return mean


def make_contender(implementation: str, config: RunConfig, peer: Path | None) -> Contender:
    """An implementation by its name; what is random in it follows `config.seed`."""
    torch.manual_seed(config.seed)
    if implementation == PEER:
        assert peer is not None
        return _peer(peer, config.autoencoder_training.learning_rate)
    model = weights_channels_last(build_autoencoder(config.autoencoder))
    if implementation in PACKAGE_OPTIONS:
        for level in model.levels.values():
            own = level.quantizer
            level.quantizer = PackageQuantizer(
                codebook_size=own.codebook_size, code_dimension=own.code_dimension, **PACKAGE_OPTIONS[implementation]
            )
    return _own(model, config)


def _own(model: Autoencoder, config: RunConfig) -> Contender:
    """The project's own training, whatever the quantizers."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    training = config.autoencoder_training
    optimization = Optimization(model.train(), training, accelerator, seed=config.seed, quantizers=model.quantizers)
    loss, starts = AutoencoderLoss(), list[ContinuousStart]()

    def losses(batch: Batch) -> Losses:
        pixels = bytes_to_model(batch.images)
        result = optimization.wrapped(pixels, kept_levels(config, batch))
        optimization.codebooks.add(result.levels)
        return loss(result, pixels)

    def restore(pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        result = model(pixels)
        return result.reconstruction, result.codes

    def begin(batches: Iterable[Batch]) -> None:
        starts.append(ContinuousStart(model, training, (batch.images for batch in batches)))

    def step(batch: Batch) -> None:
        starts[0].begin_step(optimization.step_number)
        optimization.step([batch], losses)

    return Contender(model, begin, step, restore)


def _peer(directory: Path, learning_rate: float) -> Contender:
    """The peer's model and the step of its script, with its Adam, whose rate is constant by default."""
    model = peer_module(directory).VQVAE(in_channel=3, **PEER_FIELDS).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

    def step(batch: Batch) -> None:
        pixels = bytes_to_model(batch.images)
        model.zero_grad()
        restored, latent_loss = model(pixels)
        loss = functional.mse_loss(restored, pixels) + LATENT_LOSS_WEIGHT * latent_loss.mean()
        loss.backward()
        optimizer.step()

    def restore(pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        top, bottom, _, top_codes, bottom_codes = model.encode(pixels)
        return model.decode(top, bottom), {"top": top_codes, "bottom": bottom_codes}

    return Contender(model, lambda batches: None, step, restore)
