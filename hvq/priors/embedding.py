"""The codes of one position as one vector.

Letters: G codes per position, K codebook size, E channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodeEmbedding(nn.Module):
    """The sum over the codes of a position, each with a table of its own.

    Args:
        codebook_size: K.
        channels: E.
        codes_per_position: G.

    >>> CodeEmbedding(codebook_size=5, channels=3, codes_per_position=2)(torch.zeros(7, 2, dtype=torch.int64)).shape
    torch.Size([7, 3])
    """

    def __init__(self, *, codebook_size: int, channels: int, codes_per_position: int = 1) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.weight = nn.Parameter(torch.randn(codes_per_position * codebook_size, channels))

    def forward(self, codes: Tensor) -> Tensor:
        """`[..., E]` of int64 codes `[..., G]`."""
        first_rows = torch.arange(codes.shape[-1], device=codes.device) * self.codebook_size
        return nn.functional.embedding(codes + first_rows, self.weight).sum(dim=-2)
