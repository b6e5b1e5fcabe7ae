"""The kinds of checkpoint that are known, and what tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from hvq.autoencoders import Autoencoder
from hvq.config import AutoencoderConfig
from hvq.conversion import codebooks, rosinality, rosinality_prior
from hvq.errors import CheckpointError

AutoencoderConversion = Callable[[Mapping[str, Tensor]], tuple[Autoencoder, AutoencoderConfig]]


@dataclass(frozen=True)
class AutoencoderKind:
    """How autoencoders of a project are known and converted.

    Attributes:
        signature: names of tensors by which one is known; one of them is enough, the rest may be missing.
        convert: to a model and its configuration.
        project: where it comes from.
        image_size: (H, W) that it is published for, where nothing else is known.
    """

    signature: tuple[str, ...]
    convert: AutoencoderConversion
    project: str
    image_size: tuple[int, int] = (256, 256)


AUTOENCODERS = {
    rosinality.KIND: AutoencoderKind(
        rosinality.SIGNATURE, rosinality.convert_rosinality, "rosinality/vq-vae-2-pytorch"
    ),
}
KINDS = (*AUTOENCODERS, rosinality_prior.KIND, codebooks.KIND)
"""Kinds of checkpoint that are known, by the names that `--from` takes."""


def detect_kind(tensors: Mapping[str, Tensor]) -> str:
    """Which kind of checkpoint the names of its tensors tell.

    Args:
        tensors: by name, as `unwrap` gives them.

    Raises:
        CheckpointError: where it is none.

    >>> import torch
    >>> detect_kind({"enc_b.blocks.0.weight": torch.zeros(1)})
    'rosinality'
    """
    signatures = {name: kind.signature for name, kind in AUTOENCODERS.items()}
    signatures[rosinality_prior.KIND] = rosinality_prior.SIGNATURE
    for kind, names in signatures.items():
        if any(name in tensors for name in names):
            return kind
    if codebooks.has_codebooks(tensors):
        return codebooks.KIND
    raise CheckpointError(
        f"the checkpoint is of none of the known kinds, {', '.join(KINDS)}; its tensors begin with "
        f"{', '.join(list(tensors)[:3])}: name the kind, to be told what is missing, or take the original's own file"
    )
