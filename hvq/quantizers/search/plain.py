"""The search in plain PyTorch, for any device and floating type."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

# Rows and columns of scores held at a time: few enough for a CPU's cache, enough to feed the matrix product. A GPU
# takes more rows.
_ROWS = {"cpu": 2048}
_ROWS_ELSEWHERE = 1 << 17
_TILE = 512
# Codes whose least score is found first, and only then which of them has it: a least number costs a fraction of its
# index.
_GROUP = 16


def nearest_plain(latents: Tensor, codebook: Tensor, alive: Tensor | None) -> Tensor:
    """Index of the nearest codebook vector, in the arithmetic of the inputs' own type.

    Args:
        latents: `[N, D]`.
        codebook: `[K, D]`.
        alive: bool `[K]`, codes that may be chosen; all where None.
    """
    alive = torch.ones_like(codebook[:, 0], dtype=torch.bool) if alive is None else alive
    center = codebook.masked_fill(~alive.unsqueeze(1), 0).sum(dim=0) / alive.sum()
    # Not every runtime sorts as it should; of what is exported, `hvq.export` takes repeats out beforehand.
    allowed = alive if torch.compiler.is_compiling() else first_of_equals(codebook, alive)
    codebook = codebook - center
    half_norms = (0.5 * codebook.square().sum(dim=1)).masked_fill(~allowed, torch.inf)
    if torch.compiler.is_compiling():
        return torch.addmm(half_norms, latents - center, codebook.T, alpha=-1).argmin(dim=1)
    tiles = _Tiles(codebook, half_norms, _TILE)
    blocks = latents.split(_ROWS.get(latents.device.type, _ROWS_ELSEWHERE))
    if tiles.number == 1:
        return torch.cat([tiles.inside(block - center, 0) for block in blocks])
    nearest_tile = torch.cat([tiles.nearest(block - center) for block in blocks])
    return _by_tile(latents, center, tiles, nearest_tile)


class _Tiles:
    """The codebook in tiles of columns; in each, code c * 16 + g stands at place g * (C / 16) + c of C.

    So the scores of 16 neighbouring codes stand in one column of a view `[rows, 16, C / 16]`.
    """

    def __init__(self, codebook: Tensor, half_norms: Tensor, tile: int) -> None:
        size = -(-min(tile, len(codebook)) // _GROUP) * _GROUP
        missing = -len(codebook) % size
        self.last = len(codebook) - 1
        codebook = functional.pad(codebook, (0, 0, 0, missing))
        half_norms = functional.pad(half_norms, (0, missing), value=torch.inf)
        self.number, self.size = len(codebook) // size, size
        columns = size // _GROUP
        self.codebooks = rearrange(codebook, "(t c g) d -> t (g c) d", c=columns, g=_GROUP)
        self.half_norms = rearrange(half_norms, "(t c g) -> t (g c)", c=columns, g=_GROUP)

    def scores(self, latents: Tensor, tile: int) -> Tensor:
        """½‖e‖² - z·e, which orders codes as the distance does, `[rows, C]`."""
        return torch.addmm(self.half_norms[tile], latents, self.codebooks[tile].T, alpha=-1)

    def nearest(self, latents: Tensor) -> Tensor:
        """Which tile has the nearest code, `[rows]`; the first of equals."""
        best = self.scores(latents, 0).amin(dim=1)
        nearest = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        for tile in range(1, self.number):
            least = self.scores(latents, tile).amin(dim=1)
            nearest.masked_fill_(least < best, tile)
            best = torch.minimum(best, least)
        return nearest

    def inside(self, latents: Tensor, tile: int) -> Tensor:
        """The nearest code within a tile, counted from its first, `[rows]`; the first of equals."""
        scores = self.scores(latents, tile).view(len(latents), _GROUP, self.size // _GROUP)
        group = scores.amin(dim=1).argmin(dim=1)
        place = scores.gather(2, group.view(-1, 1, 1).expand(-1, _GROUP, 1)).squeeze(2).argmin(dim=1)
        # What is not finite may end up among the padding.
        return (group * _GROUP + place).clamp(max=self.last - tile * self.size)


def _by_tile(latents: Tensor, center: Tensor, tiles: _Tiles, nearest_tile: Tensor) -> Tensor:
    """The nearest codes, from latents sorted by the tile that has theirs."""
    order = nearest_tile.argsort(stable=True)
    counts = torch.bincount(nearest_tile, minlength=tiles.number).tolist()
    codes = torch.empty_like(nearest_tile)
    for tile, rows in enumerate(order.split(counts)):
        codes[rows] = tile * tiles.size + tiles.inside(latents[rows] - center, tile)
    return codes


def first_of_equals(codebook: Tensor, alive: Tensor) -> Tensor:
    """bool `[K]`, False for a vector that equals one of lower index (and for codes that are not alive).

    Matrix products round a column by where it stands, so that equal vectors would tie only now and then. Equal ones are
    found as neighbours in the order of their first number, which hardly any other vector shares.
    """
    order = codebook[:, 0].masked_fill(~alive, torch.inf).argsort(stable=True)
    repeats = (codebook[order[1:]] == codebook[order[:-1]]).all(dim=1)
    return alive.scatter(0, order[1:], alive[order[1:]] & ~repeats)
