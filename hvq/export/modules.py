"""The two halves of an autoencoder as modules that take and give what other programs hold: images in [0, 1], codes.

Letters: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder
from hvq.data.pixels import model_to_unit, unit_to_model
from hvq.quantizers import LEARNING_STATE
from hvq.quantizers.codebook import Codebook
from hvq.quantizers.search.plain import first_of_equals


def codes_name(level: str) -> str:
    """What the codes of a level are called beside other tensors.

    >>> codes_name("top")
    'codes_top'
    """
    return f"codes_{level}"


class ImagesToCodes(nn.Module):
    """Images `[B, C, *size]` in [0, 1] to int64 codes of every level, by `codes_name`, coarse to fine.

    Args:
        autoencoder: is copied, without what decodes images.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = _without_repeats(_frozen(autoencoder))
        self.autoencoder.decoder = nn.Identity()
        self.autoencoder.enlargements = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Codes of images."""
        codes = self.autoencoder.encode(unit_to_model(images))
        return {codes_name(level): code for level, code in codes.items()}


class CodesToImages(nn.Module):
    """Codes of every level, any integers, by `codes_name`, to images `[B, C, *size]` in [0, 1].

    Args:
        autoencoder: is copied, without what encodes images.
        size: of the images; the whole grid where None.
    """

    def __init__(self, autoencoder: Autoencoder, size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.autoencoder = _frozen(autoencoder)
        for level in self.autoencoder.levels.values():
            level.encoder, level.projection = nn.Identity(), nn.Identity()
        self.size = None if size is None else tuple(size)

    def forward(self, codes: Mapping[str, Tensor]) -> Tensor:
        """Images of codes."""
        by_level = {level: codes[codes_name(level)] for level in self.autoencoder.level_names}
        return model_to_unit(self.autoencoder.decode(by_level, size=self.size))


def _frozen(autoencoder: Autoencoder) -> Autoencoder:
    """A copy without what only learning needs."""
    copied = deepcopy(autoencoder).eval().requires_grad_(False)
    for module in copied.modules():
        for name in {name for name, _ in module.named_buffers(recurse=False)} & set(LEARNING_STATE):
            delattr(module, name)
    return copied


@torch.no_grad()
def _without_repeats(autoencoder: Autoencoder) -> Autoencoder:
    """Of equal vectors of a codebook only the first may be chosen, as the search has it; what is exported has no sort.

    Codebooks that are computed, as SimVQ's, have no list of what may be chosen, and no repeats but by accident.
    """
    for module in autoencoder.modules():
        if isinstance(module, Codebook):
            module.alive.copy_(first_of_equals(module.table(), module.alive))
    return autoencoder
