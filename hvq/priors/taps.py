"""Codes as input of a convolution, without one-hot planes.

Letters: B batch, h w grid, G codes per position, K codebook size, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Offset = tuple[int, int]


def offsets_above(rows: int, columns: int) -> list[Offset]:
    """Positions in the `rows` rows above, up to `columns` to either side.

    >>> offsets_above(1, 1)
    [(-1, -1), (-1, 0), (-1, 1)]
    """
    return [(-row, column) for row in range(rows, 0, -1) for column in range(-columns, columns + 1)]


def offsets_around(reach: int) -> list[Offset]:
    """All positions up to `reach` rows and columns away, which is for codes that are all known.

    >>> len(offsets_around(1))
    9
    """
    steps = range(-reach, reach + 1)
    return [(row, column) for row in steps for column in steps]


def offsets_before(columns: int) -> list[Offset]:
    """The `columns` positions to the left, in the same row.

    >>> offsets_before(2)
    [(0, -2), (0, -1)]
    """
    return [(0, -column) for column in range(columns, 0, -1)]


class CodeTaps(nn.Module):
    """A convolution over codes as a sum of table rows: one table per tap of the kernel.

    It equals a convolution of the codes' one-hot planes. Beyond the edge of the grid each table has a row of its own.

    Args:
        codebook_size: K.
        channels: E.
        offsets: of each tap, (rows, columns) from the position that it is summed at.
        codes_per_position: G.
        shared: one embedding for all taps, each with a linear map, in place of free tables.

    >>> taps = CodeTaps(codebook_size=5, channels=3, offsets=offsets_before(2))
    >>> taps(taps.pad(torch.zeros(2, 4, 6, 1, dtype=torch.int64)), rows=(0, 4), columns=(0, 6)).shape
    torch.Size([2, 4, 6, 3])
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        channels: int,
        offsets: Sequence[Offset],
        codes_per_position: int = 1,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.outside, self.offsets = codebook_size, tuple(offsets)
        rows, std = codes_per_position * (codebook_size + 1), (len(offsets) * codes_per_position) ** -0.5
        shape = (rows, channels) if shared else (len(offsets), rows, channels)
        self.table = nn.Parameter(torch.randn(shape) * (1.0 if shared else std))
        maps = torch.randn(len(offsets), channels, channels) * std * channels**-0.5
        self.maps = nn.Parameter(maps) if shared else None
        self._first_rows = [i * (codebook_size + 1) for i in range(codes_per_position)]
        self._above, self._below = max(-row for row, _ in offsets), max(0, *(row for row, _ in offsets))
        self._beside = max(abs(column) for _, column in offsets)

    def pad(self, codes: Tensor) -> Tensor:
        """Codes int64 `[B, h, w, G]` with the surroundings that taps at the edge reach."""
        margins = (0, 0, self._beside, self._beside, self._above, self._below)
        return functional.pad(codes, margins, value=self.outside)

    def write(self, padded: Tensor, codes: Tensor, row: int, column: int) -> None:
        """Put the codes `[B, G]` of one position into padded ones."""
        self.read(padded, row, column).copy_(codes)

    def read(self, padded: Tensor, row: int, column: int) -> Tensor:
        """The codes `[B, G]` of one position of padded ones."""
        # By `select`, as everywhere in steps: a compiler takes a number in brackets for a constant.
        return padded.select(1, self._above + row).select(1, self._beside + column)

    def forward(self, padded: Tensor, *, rows: Offset, columns: Offset, table: Tensor | None = None) -> Tensor:
        """Features `[B, rows, columns, E]` of a part of the grid.

        Args:
            padded: codes, by `pad`.
            rows: first, and the one after the last.
            columns: first, and the one after the last.
            table: that of `tables`, where it is at hand; with a shared embedding it takes a product to make.
        """
        table = self.tables() if table is None else table
        parts = []
        for i, (down, right) in enumerate(self.offsets):
            top, left = self._above + down, self._beside + right
            part = padded[:, top + rows[0] : top + rows[1], left + columns[0] : left + columns[1]]
            parts.append(part + i * table.shape[1])
        places = torch.stack(parts, dim=-1) + padded.new_tensor(self._first_rows)[:, None]
        flat = functional.embedding_bag(places.flatten(0, 2).flatten(1), table.flatten(0, 1), mode="sum")
        return flat.view(*places.shape[:3], -1)

    def tables(self) -> Tensor:
        """The tables `[taps, G·(K + 1), E]`."""
        return self.table if self.maps is None else self.table @ self.maps
