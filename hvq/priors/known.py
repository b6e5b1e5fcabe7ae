"""Codes that are known before sampling begins: whole levels, or positions of a level.

Letters: n samples, `*grid` the axes of a level, T codes of a whole grid, K codebook size, G codes per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hvq.errors import DataError

Fixed: TypeAlias = tuple[Tensor, Tensor]
"""Codes `[n, *grid]`, or `[n, *grid, G]`, and a mask, bool `[n, *grid]`, of the positions that keep them."""


def check_codes(codes: Tensor, what: str, *, shape: Sequence[int], codebook_size: int | None) -> None:
    """Refuse codes that are not those of a level.

    Args:
        codes: to be checked.
        what: they are, for the error ("given codes of level top").
        shape: `[n, *grid]`, or `[n, *grid, G]`.
        codebook_size: K; None where it is not known.

    Raises:
        DataError: where they are no integers, have another shape, or one is out of range.
    """
    _check_form(codes, what, shape)
    _check_range(codes, what, codebook_size)


def check_fixed(fixed: Fixed, what: str, *, shape: Sequence[int], axes: int, codebook_size: int) -> None:
    """Refuse fixed positions that are not those of a level; codes of other positions may be any integers.

    Args:
        fixed: codes and mask.
        what: they are, for the error ("fixed codes of level top").
        shape: `[n, *grid]`, or `[n, *grid, G]`, of the codes.
        axes: of the grid, those of the mask after the first.
        codebook_size: K.

    Raises:
        DataError: where codes or mask have another type or shape, or a code that is kept is out of range.
    """
    codes, mask = fixed
    positions = list(shape[: 1 + axes])
    if mask.dtype != torch.bool or list(mask.shape) != positions:
        raise DataError(
            f"the mask of {what} must be bool {positions}, True where a position keeps its code; "
            f"received {mask.dtype} {list(mask.shape)}"
        )
    _check_form(codes, what, shape)
    _check_range(codes[mask.to(codes.device)], what, codebook_size)


def flat_fixed(fixed: Fixed, *, codes_per_position: int, device: torch.device) -> Fixed:
    """Fixed positions in the order of sampling: codes int64 `[n, T]` and mask bool `[n, T]`, on a device."""
    codes, mask = fixed
    each = mask.to(device).flatten(1).repeat_interleave(codes_per_position, dim=1)
    return codes.to(device, torch.int64).flatten(1), each


def _check_form(codes: Tensor, what: str, shape: Sequence[int]) -> None:
    whole = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
    if not whole or tuple(codes.shape) != tuple(shape):
        raise DataError(
            f"{what} must be integers {list(shape)}, a row for each sample on the grid of the level; "
            f"received {codes.dtype} {list(codes.shape)}"
        )


def _check_range(codes: Tensor, what: str, codebook_size: int | None) -> None:
    if not codes.numel():
        return
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or (codebook_size is not None and high >= codebook_size):
        limit = "at least 0" if codebook_size is None else f"in 0 .. {codebook_size - 1}"
        raise DataError(f"{what} must be {limit}; received {low} .. {high}: take those of this level and this model")
