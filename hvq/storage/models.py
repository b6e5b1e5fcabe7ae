"""Model folders: `model.safetensors` and `config.json`, publishable as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, PositiveInt, ValidationError
from torch import nn

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import AutoencoderConfig, CodeSamplingConfig
from hvq.config_base import FrozenModel
from hvq.config_priors import PriorConfig
from hvq.errors import CheckpointError, DataError
from hvq.files import read_json, read_tensors, write_folder, write_json, write_tensors
from hvq.priors import Prior, build_prior

FORMAT_VERSION: Literal[1] = 1
# 2: the transformer has rotary positions, gated feed-forward and adaptive norms.
PRIOR_FORMAT_VERSION: Literal[2] = 2
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class AutoencoderDescription(FrozenModel):
    """`config.json` of an autoencoder."""

    format_version: Literal[1] = FORMAT_VERSION
    autoencoder: AutoencoderConfig
    image_size: tuple[PositiveInt, PositiveInt]
    classes: tuple[str, ...] = ()
    about: str = Field(
        "", description="where the weights come from, and the range of pixels; empty where hvq made them"
    )


class PriorDescription(FrozenModel):
    """`config.json` of a prior: all that it takes to build it, and to sample from it with the right autoencoder."""

    format_version: Literal[2] = PRIOR_FORMAT_VERSION
    model: PriorConfig
    level: str
    codebook_size: PositiveInt
    coarser: dict[str, PositiveInt] = Field(description="codebook sizes of the coarser levels, coarse to fine")
    codes_per_position: dict[str, PositiveInt] = Field(
        default_factory=dict, description="G of this level and of coarser ones, where it is more than one"
    )
    grid: tuple[PositiveInt, PositiveInt]
    image_size: tuple[PositiveInt, PositiveInt]
    classes: tuple[str, ...] = ()
    encoder_hash: str
    codes_hash: str | None = Field(None, description="of the codes that it was trained on")
    sampling: CodeSamplingConfig = CodeSamplingConfig()
    held_out_nats: Annotated[float, Field(ge=0)] | None = None
    about: str = Field("", description="where the weights come from; empty where hvq made them")


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
    save_model(folder, model.state_dict(), description)


def save_prior(folder: Path, weights: Mapping[str, torch.Tensor], description: PriorDescription) -> None:
    """Write a prior's folder, whole or not at all.

    Args:
        folder: where it will stand.
        weights: the prior's `state_dict`, in whole tensors.
        description: its `config.json`.
    """
    save_model(folder, weights, description)


def load_autoencoder(folder: Path) -> tuple[Autoencoder, AutoencoderDescription]:
    """An autoencoder in evaluation mode, on the CPU, and its description.

    Raises:
        CheckpointError: where the folder is missing, damaged, or of another format.
    """
    description = read_description(folder, AutoencoderDescription, "autoencoder")
    model = build_autoencoder(description.autoencoder)
    load_weights(model, folder, "autoencoder")
    return model.eval(), description


def load_prior(folder: Path) -> tuple[Prior, PriorDescription]:
    """A prior in evaluation mode, on the CPU, and its description.

    Raises:
        CheckpointError: where the folder is missing, damaged, or of another format.
    """
    description = read_description(folder, PriorDescription, "prior")
    model = build_prior(
        description.model,
        codebook_size=description.codebook_size,
        coarser=description.coarser,
        num_classes=len(description.classes),
        codes_per_position=description.codes_per_position.get(description.level, 1),
        coarser_codes_per_position=description.codes_per_position,
    )
    load_weights(model, folder, "prior")
    return model.eval(), description


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


def load_state(model: nn.Module, tensors: dict[str, torch.Tensor], where: Path, what: str) -> None:
    """Fill a model with tensors, all of them.

    Raises:
        CheckpointError: which names the first tensor that is missing, unknown, or of another shape.
    """
    expected = model.state_dict()
    fault = None
    if missing := sorted(expected.keys() - tensors.keys()):
        fault = f"lacks the tensor {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
    elif extra := sorted(tensors.keys() - expected.keys()):
        fault = f"has the unknown tensor {extra[0]}" + f" and {len(extra) - 1} more" * (len(extra) > 1)
    else:
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                shapes = list(tensor.shape), list(expected[name].shape)
                fault = f"has {name} of shape {shapes[0]}, where the model has {shapes[1]}"
                break
    if fault:
        raise CheckpointError(f"{what} at {where} {fault}; weights and configuration do not belong together")
    model.load_state_dict(tensors)


Description = TypeVar("Description", bound=FrozenModel)


def save_model(folder: Path, weights: Mapping[str, torch.Tensor], description: FrozenModel) -> None:
    """Write a model's folder, whole or not at all.

    Args:
        folder: where it will stand.
        weights: in whole tensors.
        description: its `config.json`.
    """

    def write(partial: Path) -> None:
        write_tensors(partial / WEIGHTS, weights)
        write_json(partial / CONFIG, description.model_dump(mode="json"))

    write_folder(folder, write)


def load_weights(model: nn.Module, folder: Path, what: str) -> None:
    """Fill a model with all the tensors of its folder.

    Raises:
        CheckpointError: where they are missing, damaged, or of another model.
    """
    tensors, _ = read_tensors(folder / WEIGHTS, f"{what} weights")
    load_state(model, tensors, folder, what)


def read_description(folder: Path, kind: type[Description], what: str) -> Description:
    """The `config.json` of a model's folder.

    Raises:
        CheckpointError: where it is missing, damaged, or of another format.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no {what} in {folder}: train it first, or check the path")
    content: dict[str, Any] = read_json(folder / CONFIG, f"{what} configuration")
    version, expected = content.get("format_version"), kind.model_fields["format_version"].default
    if version != expected:
        raise CheckpointError(f"{what} in {folder} has format_version {version}; this version of hvq reads {expected}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{what} configuration in {folder}: {where}: {first['msg']}") from None
