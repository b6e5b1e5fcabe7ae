"""Linear maps between the vectors that a level sees and the space in which they are quantized."""

from __future__ import annotations

from torch import nn


def projections(code_dimension: int, inner_dimension: int) -> tuple[nn.Module, nn.Module]:
    """Maps from D to the inner dimension and back; both do nothing where the two are equal.

    Args:
        code_dimension: D.
        inner_dimension: of the space in which codes are chosen.

    >>> inward, outward = projections(8, 3)
    >>> inward.weight.shape, outward.weight.shape
    (torch.Size([3, 8]), torch.Size([8, 3]))
    """
    if code_dimension == inner_dimension:
        return nn.Identity(), nn.Identity()
    return nn.Linear(code_dimension, inner_dimension), nn.Linear(inner_dimension, code_dimension)
