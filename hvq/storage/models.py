"""Model folders of a run: written by stages, read by the next ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from hvq.autoencoders import Autoencoder, AutoencoderDescription
from hvq.errors import DataError
from hvq.model_folders import CONFIG, WEIGHTS, write_model
from hvq.model_weights import load_state
from hvq.priors import Prior, PriorDescription

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "AutoencoderDescription",
    "PriorDescription",
    "encoder_hash",
    "load_autoencoder",
    "load_prior",
    "load_state",
    "require_channels",
    "save_autoencoder",
    "save_prior",
]


def encoder_hash(model: Autoencoder) -> str:
    """What ties codes to an autoencoder: a hash over name, type, shape and bytes of the tensors behind `encode`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.encoding_tensors().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_autoencoder(folder: Path, model: Autoencoder, description: AutoencoderDescription) -> None:
    """Write an autoencoder's folder, whole or not at all."""
    write_model(folder, model.state_dict(), description)


def save_prior(folder: Path, weights: Mapping[str, torch.Tensor], description: PriorDescription) -> None:
    """Write a prior's folder, whole or not at all.

    Args:
        folder: where it will stand.
        weights: the prior's `state_dict`, in whole tensors.
        description: its `config.json`.
    """
    write_model(folder, weights, description)


def load_autoencoder(folder: Path) -> tuple[Autoencoder, AutoencoderDescription]:
    """An autoencoder in evaluation mode, on the CPU, and its description.

    Raises:
        CheckpointError: where the folder is missing, damaged, or of another format.
    """
    model = Autoencoder.from_pretrained(folder)
    assert model.description is not None
    return model, model.description


def load_prior(folder: Path) -> tuple[Prior, PriorDescription]:
    """A prior in evaluation mode, on the CPU, and its description.

    Raises:
        CheckpointError: where the folder is missing, damaged, or of another format.
    """
    model = Prior.from_pretrained(folder)
    assert model.description is not None
    return model, model.description


def require_channels(expected: int, received: int) -> None:
    """Refuse images that an autoencoder was not made for.

    Args:
        expected: C of the autoencoder.
        received: C of the images.

    Raises:
        DataError: where they differ.
    """
    if expected != received:
        raise DataError(
            f"the autoencoder of this run takes images of {expected} channel(s); data.channels gives {received}: use "
            "the configuration it was trained with, or train another one"
        )
