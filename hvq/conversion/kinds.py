"""The kinds of checkpoint that are known, and what tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from hvq.autoencoders import Autoencoder
from hvq.config import AutoencoderConfig
from hvq.conversion import codebooks, rosinality, rosinality_prior, vvvm23
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
        unit_range_of_grey: whether those of grey images were trained on [0, 1], in place of [-1, 1].
    """

    signature: tuple[str, ...]
    convert: AutoencoderConversion
    project: str
    image_size: tuple[int, int] = (256, 256)
    unit_range_of_grey: bool = False

    def pixels(self, channels: int) -> str:
        """A sentence about the range of pixels."""
        if channels == 1 and self.unit_range_of_grey:
            return (
                "It takes and gives images in [0, 1], float, where it was trained by the project's own recipe for grey "
                "ones; the stages here give it [-1, 1], so use it by its own forward, or train it further."
            )
        return "It takes and gives images in [-1, 1], float: byte / 127.5 - 1."


AUTOENCODERS = {
    rosinality.KIND: AutoencoderKind(
        rosinality.SIGNATURE, rosinality.convert_rosinality, "rosinality/vq-vae-2-pytorch"
    ),
    vvvm23.KIND: AutoencoderKind(vvvm23.SIGNATURE, vvvm23.convert_vvvm23, "vvvm23/vqvae-2", unit_range_of_grey=True),
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
