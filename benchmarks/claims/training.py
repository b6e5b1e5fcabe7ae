"""Images and training for the claims: digits and CIFAR-10 as arrays, and one loop for every model.

Letters: B batch, n images, C channels, H W image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    AutoencoderResult,
    build_autoencoder,
    initialize_codebooks,
)
from hvq.config import AutoencoderConfig
from hvq.config_data import ArrayConfig
from hvq.data import ImageSource, build_sources, digit_sources, ordered_batches
from hvq.data.pixels import bytes_to_model, model_to_unit
from hvq.quantizers import CodebookStep, Quantizer, QuantizerResult
from hvq.randomness import hash_words, permutation

# Images in each forward that only measures.
CHUNK = 500


# --- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """uint8 `[n, C, H, W]` and int64 labels `[n]` of both splits."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    classes: int

    @property
    def channels(self) -> int:
        """C."""
        return self.train.shape[1]


def digits(size: int = 16) -> Images:
    """1,437 scanned digits, and 360 held-out ones, `size` pixels a side; 8 is what they were scanned at."""
    return _images(digit_sources(size=(size, size)), None, None)


def cifar10(folder: Path, *, train: int | None = None, held_out: int | None = None) -> Images:
    """CIFAR-10, the first so many images of each split.

    Args:
        folder: with cifar10-{train,val}.safetensors.
        train: training images; all by default.
        held_out: held-out images; all by default.
    """
    names = {split: str(folder / f"cifar10-{split}.safetensors") for split in ("train", "val")}
    return _images(build_sources(ArrayConfig(train=names["train"], validation=names["val"]), 0), train, held_out)


def _images(sources: Any, train: int | None, held_out: int | None) -> Images:
    return Images(*_split(sources.train, train), *_split(sources.validation, held_out), len(sources.train.classes))


def _split(source: ImageSource, count: int | None) -> tuple[Tensor, Tensor]:
    stop = None if count is None else min(count, len(source))
    parts = list(ordered_batches(source, chunk_size=CHUNK, stop=stop))
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


def batches(images: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless rows `[B, ...]`, shuffled anew in each epoch by the seed alone; all rows where there are fewer than B."""
    for epoch in itertools.count():
        order = torch.from_numpy(permutation(len(images), "claims", seed, epoch))
        for rows in order.split(batch_size)[: max(1, len(images) // batch_size)]:
            yield images[rows]


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW with warm-up and a cosine down to a twentieth.

    Attributes:
        steps: of the optimizer.
        batch_size: B.
        learning_rate: after a warm-up of a twentieth of the steps.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3

    def rate(self, step: int) -> float:
        """Learning rate of a step from 0."""
        warmup = max(1, self.steps // 20)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        share = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


LossOf = Callable[[Tensor], tuple[Tensor, Mapping[str, QuantizerResult]]]
"""The loss of one batch of rows, and the results of the quantizers whose codebooks learn beside the optimizer."""


def fit(
    model: nn.Module,
    rows: Tensor,
    loss: LossOf,
    schedule: Schedule,
    *,
    seed: int,
    quantizers: Mapping[str, Quantizer] | None = None,
    observe: Callable[[int], None] | None = None,
) -> None:
    """Train anything on rows `[n, ...]`, with the codebook step beside the optimizer's.

    Args:
        model: its parameters are trained.
        rows: images, or codes.
        loss: of a batch of them.
        schedule: of the steps.
        seed: of the order of rows, and of what is drawn in each step.
        quantizers: by level name.
        observe: is told the number of finished steps after each.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    codebooks = CodebookStep(quantizers or {}, optimizer)
    model.train()
    for step, batch in zip(range(schedule.steps), batches(rows, schedule.batch_size, seed), strict=False):
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        torch.manual_seed(int(hash_words("claims", seed, step) >> 1))
        total, results = loss(batch)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        codebooks.add(results)
        optimizer.step()
        codebooks.step()
        if observe is not None:
            observe(step + 1)
    model.eval()


def make_autoencoder(seed: int, **fields: Any) -> Autoencoder:
    """An autoencoder of these fields of `hvq.config.AutoencoderConfig`, whose first weights the seed decides."""
    torch.manual_seed(seed)
    return build_autoencoder(AutoencoderConfig.model_validate(fields)).to(memory_format=torch.channels_last)


def train_autoencoder(
    model: Autoencoder,
    images: Tensor,
    schedule: Schedule,
    *,
    seed: int,
    loss: Callable[[AutoencoderResult, Tensor], tuple[Tensor, Any]] | None = None,
    kmeans: bool = True,
    level_dropout: float = 0.0,
    observe: Callable[[int], None] | None = None,
) -> None:
    """Train an autoencoder on uint8 images `[n, C, H, W]`.

    Args:
        model: with fresh weights.
        images: of the training split.
        schedule: of the steps.
        seed: of the order of images, and of what is drawn.
        loss: the total first; equation (9) with its default weights, where None.
        kmeans: whether codebooks begin by it, rather than at random.
        level_dropout: chance that an image is decoded from its coarser levels alone.
        observe: is told the number of finished steps after each.
    """
    weigh = loss or AutoencoderLoss()
    if kmeans:
        initialize_codebooks(model, map(bytes_to_model, batches(images, schedule.batch_size, seed)))

    def of_batch(batch: Tensor) -> tuple[Tensor, Mapping[str, QuantizerResult]]:
        pixels = bytes_to_model(batch)
        result = model(pixels, kept_levels(len(pixels), len(model.level_names), level_dropout))
        return weigh(result, pixels)[0], result.levels

    fit(model, images, of_batch, schedule, seed=seed, quantizers=model.quantizers, observe=observe)


def kept_levels(count: int, levels: int, dropout: float) -> Tensor | None:
    """How many of the coarsest levels each image is decoded from, int64 `[count]`; None for all of them."""
    if levels == 1 or not dropout:
        return None
    fewer = torch.randint(1, levels, (count,))
    return torch.where(torch.rand(count) < dropout, fewer, levels)


# --- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstructions(model: Autoencoder, images: Tensor) -> Tensor:
    """float32 `[n, C, H, W]` in [0, 1] of uint8 images, in evaluation mode."""
    was_training = model.training
    model.eval()
    restored = torch.cat([model_to_unit(model(bytes_to_model(part)).reconstruction) for part in images.split(CHUNK)])
    model.train(was_training)
    return restored


@torch.no_grad()
def codes_of(model: Autoencoder, images: Tensor) -> dict[str, Tensor]:
    """int64 `[n, h, w]`, or `[n, h, w, G]`, by level name, of uint8 images."""
    parts = [model.encode(bytes_to_model(part)) for part in images.split(CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in model.level_names}


def reconstruction_error(model: Autoencoder, images: Tensor) -> float:
    """Mean squared error on [0, 1] over uint8 images."""
    return float((reconstructions(model, images) - images.float() / 255).double().square().mean())
