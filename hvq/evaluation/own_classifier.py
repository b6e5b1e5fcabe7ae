"""A classifier of one's own for features: trained on the spot on a run's real images, saved, and taken again.

Its folder holds `model.safetensors` and `config.json`, as those of models do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt, ValidationError
from torch import Tensor

from hvq.config_base import FrozenModel
from hvq.distributed import Reduction
from hvq.errors import CheckpointError
from hvq.evaluation.classification import SmallClassifier, fit_classifier
from hvq.files import read_json, read_tensors, write_folder, write_json, write_tensors
from hvq.randomness import uniform
from hvq.storage.models import CONFIG, WEIGHTS, load_state

FORMAT_VERSION: Literal[1] = 1
Task = Literal["classes", "rotations"]


class ClassifierDescription(FrozenModel):
    """`config.json` of a classifier: all that its weights depend on."""

    format_version: Literal[1] = FORMAT_VERSION
    task: Task
    channels: PositiveInt
    image_size: tuple[PositiveInt, PositiveInt]
    num_classes: PositiveInt
    images: PositiveInt
    steps: PositiveInt
    seed: int
    data_hash: str


@dataclass(frozen=True)
class OwnClassifier:
    """A classifier, and what it was trained on.

    Attributes:
        network: in evaluation mode.
        description: of its training.
    """

    network: SmallClassifier
    description: ClassifierDescription

    @property
    def digest(self) -> str:
        """Hash of its weights."""
        return hash_tensors(self.network.state_dict().values())

    @property
    def name(self) -> str:
        """What a reader has to know: that it is this one, and what it has learned from."""
        about = self.description
        trained_on = f"classifier {self.digest[:8]} trained on {about.images} real images"
        if about.task == "classes":
            return f"{trained_on} of {about.num_classes} classes"
        return f"{trained_on} without labels, to tell {about.num_classes} rotations"


def own_classifier(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    steps: int,
    seed: int,
    device: torch.device,
    reduction: Reduction | None = None,
) -> OwnClassifier:
    """The classifier of a folder where it is of these images and settings, or else a new one, which is left there.

    Where no image has a label, or there are fewer than two classes, it learns to tell by which multiple of 90 degrees
    an image was rotated (Gidaris et al. 2018, arXiv 1803.07728), or of 180 degrees where images are not square.

    Args:
        folder: where it lies; made by the first process, which trains it for all.
        images: uint8 `[n, C, H, W]`.
        labels: integers `[n]`, -1 where unknown; such images are left out unless all are.
        num_classes: of the labels.
        steps: of training.
        seed: of training.
        device: where it is trained and used.
        reduction: over the processes.

    Raises:
        DataError: where there are no images, or they are too small.
        StorageError: where it cannot be saved.
    """
    reduction = reduction or Reduction()
    task: Task = "classes" if num_classes > 1 and bool((labels >= 0).any()) else "rotations"
    if task == "classes":
        images, labels = images[labels >= 0], labels[labels >= 0]
    else:
        num_classes = 4 if images.shape[2] == images.shape[3] else 2
    description = ClassifierDescription(
        task=task,
        channels=images.shape[1],
        image_size=(images.shape[2], images.shape[3]),
        num_classes=num_classes,
        images=len(images),
        steps=steps,
        seed=seed,
        data_hash=hash_tensors((images, labels)),
    )
    network = _empty(description).to(device)
    if reduction.rank == 0:
        weights = _saved(folder, description)
        if weights is None:
            if task == "rotations":
                images, labels = rotated(images, turns=num_classes, seed=seed)
            fitted = fit_classifier(images, labels, num_classes=num_classes, steps=steps, seed=seed, device=device)
            weights = {name: tensor.detach() for name, tensor in fitted.state_dict().items()}
            _save(folder, description, weights)
        load_state(network, weights, folder, "classifier")
    # One process trains, for on several devices the same training ends in slightly different weights.
    shared = {name: reduction.first(tensor) for name, tensor in network.state_dict().items()}
    network.load_state_dict(shared)
    return OwnClassifier(network.eval(), description)


def load_own_classifier(folder: Path) -> OwnClassifier:
    """The classifier that lies in a folder, on the CPU, whatever it was trained on.

    Raises:
        CheckpointError: where there is none, or it is damaged.
    """
    what = "classifier"
    try:
        description = ClassifierDescription.model_validate(read_json(folder / CONFIG, what))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{what} at {folder / CONFIG}: {where}: {first['msg']}") from None
    network = _empty(description)
    load_state(network, read_tensors(folder / WEIGHTS, "classifier weights")[0], folder, what)
    return OwnClassifier(network.eval(), description)


def rotated(images: Tensor, *, turns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each image rotated by a multiple of 360 / turns degrees, and which: a function of (seed, place).

    Args:
        images: `[n, C, H, W]`.
        turns: 4, or 2 for images that are not square.
        seed: of the draw.

    Returns:
        Images of the same form, and labels, int64 `[n]`, in 0 .. turns - 1.
    """
    labels = torch.from_numpy((uniform(seed, "rotation", np.arange(len(images))) * turns).astype(np.int64))
    turned = images.clone()
    for label in range(1, turns):
        turned[labels == label] = images[labels == label].rot90(label * 4 // turns, (2, 3))
    return turned, labels


def _empty(description: ClassifierDescription) -> SmallClassifier:
    return SmallClassifier(
        channels=description.channels, size=description.image_size, num_classes=description.num_classes
    )


def _saved(folder: Path, description: ClassifierDescription) -> dict[str, Tensor] | None:
    """The weights that lie there, where they are those that training would end in; what is damaged is made anew."""
    with suppress(CheckpointError):
        saved = load_own_classifier(folder)
        if saved.description == description:
            return saved.network.state_dict()
    return None


def _save(folder: Path, description: ClassifierDescription, weights: dict[str, Tensor]) -> None:
    def write(partial: Path) -> None:
        write_tensors(partial / WEIGHTS, weights)
        write_json(partial / CONFIG, description.model_dump(mode="json"))

    write_folder(folder, write)


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over types, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
