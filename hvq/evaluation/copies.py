"""How many samples are copies of training images: equal codes, or pixels nearer than the autoencoder can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.errors import DataError
from hvq.level_names import in_level_order

_BYTES_AT_ONCE = 2**27
"""Of images in float64; large images are compared fewer at a time than small ones."""


@dataclass(frozen=True)
class CopyReport:
    """Shares of samples, each in [0, 1].

    Args:
        share: copies by codes, by pixels, or both.
        by_codes: all codes of all levels equal those of one training image.
        by_pixels: the mean squared error to the nearest training image is at most the threshold.
    """

    share: float
    by_codes: float
    by_pixels: float


def copy_share(
    generated: Tensor,
    generated_codes: Mapping[str, Tensor],
    training: Tensor,
    training_codes: Mapping[str, Tensor],
    *,
    threshold: float,
    chunk_size: int = 1024,
) -> CopyReport:
    """The share of samples that copy a training image. All comparisons are exact.

    Args:
        generated: samples, uint8 [n, C, H, W].
        generated_codes: their codes by level name, integers [n, h, w].
        training: training images, uint8 [m, C, H, W].
        training_codes: codes by level name, integers [k, h, w]; k may differ from m where images were encoded more
            than once, under augmentation.
        threshold: largest mean squared error, of pixels in [0, 1], at which a sample is a copy. The autoencoder's own
            held-out error is the natural one: as near as it could have come to the image.
        chunk_size: samples, and training images, compared at a time at most; nothing of size n x m, and no second copy
            of the images, is ever held.

    Raises:
        DataError: where images differ in size, or codes do not belong to the samples.

    Example:
        >>> images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
        >>> codes = {"top": torch.tensor([[[1, 2]], [[3, 4]]])}
        >>> copy_share(255 - images, {"top": codes["top"] + 1}, images, codes, threshold=1e-3).share
        0.0
        >>> copy_share(255 - images, codes, images, codes, threshold=1e-3).by_codes
        1.0
    """
    _check_images(generated, training)
    for level, codes in generated_codes.items():
        if codes.shape[0] != generated.shape[0]:
            raise DataError(
                f"codes of level {level} must be those of the {generated.shape[0]} samples; received {codes.shape[0]}"
            )
    by_codes = _equal_codes(generated_codes, in_level_order(training_codes, tuple(generated_codes), "training codes"))
    by_pixels = nearest_squared_errors(generated, training, chunk_size=chunk_size).cpu() <= threshold
    return CopyReport(
        share=float((by_codes | by_pixels).double().mean()),
        by_codes=float(by_codes.double().mean()),
        by_pixels=float(by_pixels.double().mean()),
    )


def nearest_squared_errors(generated: Tensor, training: Tensor, *, chunk_size: int = 1024) -> Tensor:
    """Mean squared pixel error, on [0, 1], of each sample to the training image nearest to it.

    Squares and products of bytes are integers that float64 holds exactly, so the matrix product loses nothing.

    Args:
        generated: uint8 [n, C, H, W].
        training: uint8 [m, C, H, W].
        chunk_size: samples, and training images, compared at a time at most; large images are fewer.

    Returns:
        float64 [n].

    Example:
        >>> black, grey = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 51, dtype=torch.uint8)
        >>> [round(error, 6) for error in nearest_squared_errors(torch.cat([black, grey]), black).tolist()]
        [0.0, 0.04]
    """
    _check_images(generated, training)
    dimensions = generated[0].numel()
    rows = max(1, min(chunk_size, _BYTES_AT_ONCE // (8 * dimensions)))
    nearest = [_nearest_squared_distances(part, training.split(rows)) for part in generated.split(rows)]
    return torch.cat(nearest) / (dimensions * 255.0**2)


def _nearest_squared_distances(generated: Tensor, training: Sequence[Tensor]) -> Tensor:
    """Squared distance, of bytes, of each sample of a part to the nearest of all parts of training images."""
    samples = generated.flatten(1).to(torch.float64)
    best = samples.new_full((len(samples),), torch.inf)
    for part in training:
        references = part.flatten(1).to(torch.float64)
        distances = torch.addmm(references.square().sum(1), samples, references.T, alpha=-2.0)
        best = torch.minimum(best, distances.min(1).values)
    return best + samples.square().sum(1)


def _check_images(generated: Tensor, training: Tensor) -> None:
    for images, what in ((generated, "samples"), (training, "training images")):
        if images.dtype != torch.uint8 or images.ndim not in (3, 4, 5) or images.shape[0] == 0:
            raise DataError(
                f"{what} must be uint8 [n, C, H, W], or of one axis or three; received {images.dtype} "
                f"{list(images.shape)}"
            )
    if generated.shape[1:] != training.shape[1:]:
        raise DataError(
            "samples and training images must have one size [C, H, W]; "
            f"received {list(generated.shape[1:])} and {list(training.shape[1:])}"
        )


def _equal_codes(generated: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> Tensor:
    """Whether all codes of a sample equal those of one training row, bool [n].

    Whole rows are compared, as bytes; only those of the samples are held, since training sets can be large.
    """
    rows: dict[bytes, list[int]] = {}
    for index, row in enumerate(_code_rows(generated)):
        rows.setdefault(row.tobytes(), []).append(index)
    equal = torch.zeros(sum(map(len, rows.values())), dtype=torch.bool)
    for row in _code_rows(training):
        equal[rows.get(row.tobytes(), [])] = True
    return equal


def _code_rows(codes: Mapping[str, Tensor]) -> Iterator[NDArray[np.int64]]:
    """All codes of one image after the other, levels joined."""
    levels = [values.flatten(1).cpu().numpy() for values in codes.values()]
    # Types may differ; rows are brought to one type as they are compared, not all at once.
    return (np.concatenate([row.astype(np.int64) for row in rows]) for rows in zip(*levels, strict=True))
