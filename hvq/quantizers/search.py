"""The nearest codebook vector, equations (1) to (4), without a tensor of size N x K."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances held at a time: 2^20 of them stay in a CPU's cache and still feed the matrix product.
_BLOCK_ELEMENTS = 1 << 20


@torch.no_grad()
def nearest_code(latents: Tensor, codebook: Tensor, alive: Tensor | None = None) -> Tensor:
    """Index of the codebook vector nearest to each latent in Euclidean distance; ties go to the lowest index.

    Minimises ½‖e_j‖² − z·e_j, which orders codes as the distance does. The mean of the vectors that may be chosen is
    subtracted from both sides first: where latents share a large mean, the product would otherwise lose the digits that
    tell codes apart.

    Args:
        latents: `[N, D]`.
        codebook: `[K, D]`, of the same type, float32 or float64.
        alive: bool `[K]`, codes that may be chosen; all where None.

    Returns:
        int64 `[N]`, in 0 .. K - 1.

    >>> nearest_code(torch.tensor([[0.9, 0.1], [0.1, 0.2]]), torch.eye(2)).tolist()
    [0, 1]
    """
    with torch.autocast(latents.device.type, enabled=False):
        alive = torch.ones_like(codebook[:, 0], dtype=torch.bool) if alive is None else alive
        center = codebook.masked_fill(~alive.unsqueeze(1), 0).sum(dim=0) / alive.sum()
        allowed = _first_of_equals(codebook, alive)
        codebook = codebook - center
        half_norms = (0.5 * codebook.square().sum(dim=1)).masked_fill(~allowed, torch.inf)
        rows = max(1, _BLOCK_ELEMENTS // codebook.shape[0])
        blocks = latents.split(rows)
        nearest = [torch.addmm(half_norms, block - center, codebook.T, alpha=-1).argmin(dim=1) for block in blocks]
        return torch.cat(nearest)


def _first_of_equals(codebook: Tensor, alive: Tensor) -> Tensor:
    """bool `[K]`, False for a vector that equals one of lower index (and for codes that are not alive).

    Matrix products round a column by where it stands, so that equal vectors would tie only now and then. Equal ones are
    found as neighbours in the order of their first number, which hardly any other vector shares.
    """
    order = codebook[:, 0].masked_fill(~alive, torch.inf).argsort(stable=True)
    repeats = (codebook[order[1:]] == codebook[order[:-1]]).all(dim=1)
    return alive.scatter(0, order[1:], alive[order[1:]] & ~repeats)
