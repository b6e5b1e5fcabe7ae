"""An autoencoder and the priors of its levels, loaded together."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hvq.autoencoders import Autoencoder
from hvq.config import Precision
from hvq.errors import CheckpointError
from hvq.priors import Prior, SamplingOptions
from hvq.storage.models import PriorDescription, encoder_hash, load_autoencoder, load_prior
from hvq.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Hierarchy:
    """A trained system, in evaluation mode.

    Attributes:
        autoencoder: the levels and the image decoder.
        priors: by level name, coarse to fine; fewer than levels while some are not trained.
        options: how each prior is sampled unless told otherwise.
        grids: (h, w) of each level for images of `image_size`.
        image_size: (H, W) that it was trained on.
        channels: C of the images.
        classes: names of the classes; empty without.
    """

    autoencoder: Autoencoder
    priors: dict[str, Prior]
    options: dict[str, SamplingOptions]
    grids: dict[str, tuple[int, ...]]
    image_size: tuple[int, int]
    channels: int
    classes: tuple[str, ...]

    def to(self, device: torch.device | str, *, prior_precision: Precision | None = None) -> Hierarchy:
        """Move all models to a device, in place.

        Args:
            device: where they run.
            prior_precision: of the priors' weights; bfloat16 halves what a step of sampling reads, and draws other
                samples. By default it is left as it is.
        """
        self.autoencoder.to(device)
        for prior in self.priors.values():
            prior.to(device=device, dtype=None if prior_precision is None else getattr(torch, prior_precision))
        return self

    def with_prior_precision(self, precision: Precision) -> Hierarchy:
        """The same system with its priors' weights in a precision; those that have another one are copied.

        What bfloat16 drops does not come back: begin with the priors as they were loaded.
        """
        dtype = getattr(torch, precision)
        priors = {
            name: prior if next(prior.parameters()).dtype == dtype else deepcopy(prior).to(dtype=dtype)
            for name, prior in self.priors.items()
        }
        return replace(self, priors=priors)


def load_hierarchy(run: RunFolder) -> Hierarchy:
    """All that a run folder holds: the autoencoder, and the priors that are there.

    Raises:
        CheckpointError: where the autoencoder is missing, a folder is damaged, or a prior belongs to another
            autoencoder.
    """
    autoencoder, description = load_autoencoder(run.autoencoder)
    expected, grids = encoder_hash(autoencoder), autoencoder.grids(description.image_size)
    priors: dict[str, Prior] = {}
    options: dict[str, SamplingOptions] = {}
    for name in autoencoder.level_names:
        if not run.prior(name).exists():
            continue
        priors[name], about = load_prior(run.prior(name))
        _require_encoder(about, expected, run.prior(name))
        _require_place(about, name, grids[name], run.prior(name))
        options[name] = SamplingOptions(**about.sampling.model_dump())
    return Hierarchy(
        autoencoder=autoencoder,
        priors=priors,
        options=options,
        grids=grids,
        image_size=description.image_size,
        channels=description.autoencoder.channels,
        classes=description.classes,
    )


def _require_encoder(description: PriorDescription, expected: str, folder: Path) -> None:
    if description.encoder_hash != expected:
        raise CheckpointError(
            f"the prior in {folder} was trained on codes of another autoencoder; extract codes and train it again"
        )


def _require_place(description: PriorDescription, level: str, grid: tuple[int, ...], folder: Path) -> None:
    if (description.level, description.grid) != (level, grid):
        raise CheckpointError(
            f"the prior in {folder} must be of level {level} on a grid of {_text(grid)}, which images of the "
            f"autoencoder's size have; it is of level {description.level} on {_text(description.grid)}: extract codes "
            "at that size and train it again"
        )


def _text(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
