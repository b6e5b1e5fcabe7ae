"""A small hierarchy of codes of digits: an autoencoder of two levels and priors of each kind, kept in cells.

Letters: n images, h w a level's grid.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from frame import Cells
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional
from training import CHUNK, Images, Schedule, fit, make_autoencoder, train_autoencoder

from hvq.autoencoders import Autoencoder
from hvq.evaluation.generation import generate
from hvq.priors import Condition, Prior
from hvq.priors.build import KINDS
from hvq.quantizers import QuantizerResult
from hvq.storage import Hierarchy

Model = TypeVar("Model", bound=nn.Module)

# Pixels per code: of a digit of 16x16, 2x2 codes at the top and 4x4 at the bottom.
RATIOS = {"top": 2, "bottom": 4}
# Of each kind, sizes at which all take about as long.
PRIOR_FIELDS: dict[str, dict[str, Any]] = {
    "pixelcnn": {"layers": 5, "kernel": 3},
    "pixelsnail": {"blocks": 1, "residual_blocks": 3, "kernel": 3, "heads": 4},
    "transformer": {"layers": 3, "heads": 4},
}


@dataclass(frozen=True)
class Sizes:
    """Of the models, and how long they are trained.

    Attributes:
        steps: of the autoencoder.
        width: of its features.
        codebook_size: K of both levels.
        prior_steps: of each level's prior.
        prior_width: of its features.
    """

    steps: int
    width: int
    codebook_size: int
    prior_steps: int
    prior_width: int


def kept(cells: Cells, about: Mapping[str, Any], make: Callable[[], Model], train: Callable[[Model], None]) -> Model:
    """A model whose weights are in a cell, or are trained and put there.

    Args:
        cells: of the claim.
        about: all that the weights hang on.
        make: the model with fresh weights.
        train: it, in place.
    """

    def weights() -> str:
        model = make()
        train(model)
        # Models may share the memory of tensors, or lay them out channels last.
        tensors = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        return base64.b64encode(save(tensors)).decode()

    text = cells.of(about, weights)
    model = make()
    model.load_state_dict(load(base64.b64decode(text)))
    return model.eval()


def digit_autoencoder(images: Images, sizes: Sizes, cells: Cells) -> Autoencoder:
    """Two levels, trained on digits."""
    features = {"width": sizes.width, "residual_blocks": 1, "residual_width": sizes.width // 2}
    level = {"codebook_size": sizes.codebook_size, "code_dimension": 16, **features}
    levels = {name: {"ratio": ratio, **level} for name, ratio in RATIOS.items()}
    return kept(
        cells,
        {"model": "autoencoder", "steps": sizes.steps, "width": sizes.width, "codebook_size": sizes.codebook_size},
        lambda: make_autoencoder(0, channels=images.channels, levels=levels, decoder=features),
        lambda model: train_autoencoder(model, images.train, Schedule(sizes.steps, 64, 2e-3), seed=0),
    )


def make_prior(kind: str, level: str, sizes: Sizes, classes: int) -> Prior:
    """Of one level, with fresh weights."""
    torch.manual_seed(0)
    names = list(RATIOS)
    own = {"width": sizes.prior_width, **PRIOR_FIELDS[kind], "dropout": 0.2, "context_blocks": 1}
    if kind == "pixelsnail":
        own["residual_width"] = sizes.prior_width
    return KINDS[kind](
        codebook_size=sizes.codebook_size,
        coarser=dict.fromkeys(names[: names.index(level)], sizes.codebook_size),
        num_classes=classes,
        **own,
    )


def nats(prior: Prior, level: str, codes: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of a level's codes, given the coarser ones and the class, in nats per code."""
    condition = Condition(codes={name: codes[name] for name in prior.coarser}, labels=labels)
    return functional.cross_entropy(prior(codes[level], condition).flatten(0, -2), codes[level].flatten())


def digit_priors(
    kind: str, codes: Mapping[str, Tensor], images: Images, sizes: Sizes, cells: Cells
) -> dict[str, Prior]:
    """Of both levels, trained on the codes of the training images."""
    # A claim's plan has more fields than these, which weights do not hang on.
    about = {field.name: getattr(sizes, field.name) for field in fields(Sizes)}
    return {
        level: kept(
            cells,
            {"model": kind, "level": level, **about},
            lambda level=level: make_prior(kind, level, sizes, images.classes),
            lambda prior, level=level: train_prior(prior, level, codes, images.train_labels, sizes.prior_steps),
        )
        for level in codes
    }


def train_prior(prior: Prior, level: str, codes: Mapping[str, Tensor], labels: Tensor, steps: int) -> None:
    """On codes `[n, h, w]` of all levels, by name."""

    def loss(rows: Tensor) -> tuple[Tensor, Mapping[str, QuantizerResult]]:
        return nats(prior, level, {name: code[rows] for name, code in codes.items()}, labels[rows]), {}

    fit(prior, torch.arange(len(labels)), loss, Schedule(steps, 64, 2e-3), seed=0)


@torch.no_grad()
def nats_per_image(priors: Mapping[str, Prior], codes: Mapping[str, Tensor], labels: Tensor) -> float:
    """Mean negative log-likelihood of all codes of an image."""
    total = 0.0
    for rows in torch.arange(len(labels)).split(CHUNK):
        part = {name: code[rows] for name, code in codes.items()}
        each = sum(
            float(nats(prior, level, part, labels[rows])) * part[level][0].numel() for level, prior in priors.items()
        )
        total += each * len(rows)
    return total / len(labels)


def hierarchy_of(model: Autoencoder, priors: Mapping[str, Prior], images: Images) -> Hierarchy:
    """As the project's own evaluation takes them."""
    size = (images.train.shape[2], images.train.shape[3])
    return Hierarchy(
        autoencoder=model,
        priors=dict(priors),
        options={},
        grids=model.grids(size),
        image_size=size,
        channels=images.channels,
        classes=tuple(str(label) for label in range(images.classes)),
    )


def drawn(hierarchy: Hierarchy, labels: Tensor, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Codes by level name and uint8 images, one of each label."""
    made = generate(hierarchy, samples=range(len(labels)), labels=labels.tolist(), seed=seed, chunk_size=256)
    return made.codes, made.images
