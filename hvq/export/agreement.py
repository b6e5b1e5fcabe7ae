"""Whether exported models say the same as the autoencoder that they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hvq.autoencoders import Autoencoder
from hvq.data.pixels import model_to_unit, unit_to_model
from hvq.errors import HVQError
from hvq.export.description import AXES, IMAGES, Agreement, ExportDescription
from hvq.export.modules import codes_name
from hvq.export.programs import examples

Run = Callable[..., Any]
"""Outputs by name, of inputs by name."""

# Of float32, in another order of summing: two codes may be nearest but for rounding, and either is right.
_MOST_DIFFERING = 1e-3
_IMAGE_TOLERANCE = 1e-4
_BATCH = 3


@torch.no_grad()
def require_agreement(
    autoencoder: Autoencoder, description: ExportDescription, *, encode: Run, decode: Run
) -> Agreement:
    """Compare on random images and random codes.

    Args:
        autoencoder: in evaluation mode.
        description: of the export.
        encode: runs the exported encoder.
        decode: runs the exported decoder.

    Raises:
        HVQError: where more than a thousandth of the codes differ, which is more than rounding does, or an image does
            by more than 1e-4.
    """
    coarsest = max(autoencoder.strides.values())
    size = description.image_size
    axes = {name: -(-length // coarsest) for name, length in zip(AXES[len(size)], size, strict=True)}
    lengths = {"batch": _BATCH, **axes}
    images = examples(description.encoder.inputs, **lengths)[IMAGES]
    expected = autoencoder.encode(unit_to_model(images))
    found = encode(images=images)
    differing = sum(int((found[codes_name(level)] != codes).sum()) for level, codes in expected.items())
    number = sum(codes.numel() for codes in expected.values())
    error = _image_error(autoencoder, examples(description.decoder.inputs, **lengths), images.shape[2:], decode)
    if differing > _MOST_DIFFERING * number or not error <= _IMAGE_TOLERANCE:
        raise HVQError(
            f"what was exported is not the autoencoder: {differing} of {number} codes differ, and images by up to "
            f"{error:.2g}, where at most {_MOST_DIFFERING:.1%} and {_IMAGE_TOLERANCE} are rounding; try the other "
            "format, or other versions of its packages"
        )
    return Agreement(codes=number, differing_codes=differing, image_error=error)


def _image_error(autoencoder: Autoencoder, codes: dict[str, Tensor], size: torch.Size, decode: Run) -> float:
    by_level = {level: codes[codes_name(level)] for level in autoencoder.level_names}
    expected = model_to_unit(autoencoder.decode(by_level, size=size))
    return float((decode(**codes)[IMAGES] - expected).abs().max())
