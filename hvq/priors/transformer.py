"""A causal transformer over the codes of one level.

Letters: B batch, h w grid, T = h·w positions in raster order, E channels, A heads, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.errors import ConfigurationError, DataError
from hvq.priors.base import Prior
from hvq.priors.condition import Condition, ConditionEncoder


@dataclass(frozen=True)
class TransformerCache:
    """All that sampling carries from position to position.

    Attributes:
        inputs: `[B, T, E]`, what each position is told beside the codes.
        keys: `[layers, B, A, T, E / A]`, filled up to `position`.
        values: of the same shape.
        position: the next position, 0 .. T.
    """

    inputs: Tensor
    keys: Tensor
    values: Tensor
    position: int


class _Attention(nn.Module):
    """Causal self-attention of all positions, or of one position against a cache."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self._split(tokens)
        return self._join(functional.scaled_dot_product_attention(query, key, value, is_causal=True))

    def step(self, token: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        """Attend from one position `[B, 1, E]`; its key and value are written into the cache."""
        query, key, value = self._split(token)
        keys[:, :, position] = key[:, :, 0]
        values[:, :, position] = value[:, :, 0]
        seen = slice(position + 1)
        return self._join(functional.scaled_dot_product_attention(query, keys[:, :, seen], values[:, :, seen]))

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = tokens.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        query, key, value = self.projections(tokens).view(shape).permute(2, 0, 3, 1, 4)
        return query, key, value

    def _join(self, attended: Tensor) -> Tensor:
        return self.output(attended.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Pre-normalised attention and feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens)))
        return tokens + self.dropout(self.feed_forward(tokens))

    def step(self, token: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        token = token + self.attention.step(self.attention_norm(token), keys, values, position)
        return token + self.feed_forward(token)


class TransformerPrior(Prior):
    """A causal transformer with positions on the grid, conditioned on coarser levels and on the class.

    Position t is given the code of position t - 1, its place on the grid (row and column), and the features of the
    condition there.

    Args:
        codebook_size: K of this level.
        coarser: codebook size of every coarser level by name, coarse to fine.
        num_classes: number of classes; 0 without.
        width: E.
        layers: blocks of attention and feed-forward.
        heads: A, a divisor of `width`.
        dropout: in training, after attention and feed-forward.
        context_blocks: residual blocks of convolutions that read each coarser level.
        feature_channels: channels of a dense feature map in the condition; 0 without.
        vector_size: length of a vector in the condition; 0 without.
        spatial_dims: axes of the grid, 1, 2 or 3.

    >>> prior = TransformerPrior(codebook_size=7, coarser={"top": 5}, width=16, layers=1, heads=2)
    >>> condition = Condition(codes={"top": torch.zeros(2, 2, 3, dtype=torch.int64)})
    >>> prior(torch.zeros(2, 4, 6, dtype=torch.int64), condition).shape
    torch.Size([2, 4, 6, 7])
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        coarser: Mapping[str, int] | None = None,
        num_classes: int = 0,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        dropout: float = 0.1,
        context_blocks: int = 2,
        feature_channels: int = 0,
        vector_size: int = 0,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigurationError(f"width must be a multiple of heads; received {width} and {heads}")
        self.codebook_size = codebook_size
        self.coarser = dict(coarser or {})
        # The last row stands before the first position.
        self.embedding = nn.Embedding(codebook_size + 1, width)
        self.positions = nn.Linear(width, width)
        self.condition = ConditionEncoder(
            channels=width,
            coarser=self.coarser,
            num_classes=num_classes,
            blocks=context_blocks,
            feature_channels=feature_channels,
            vector_size=vector_size,
            spatial_dims=spatial_dims,
        )
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codebook_size))
        self._shape = (layers, heads, width // heads)
        self._reset_parameters()

    def forward(self, codes: Tensor, condition: Condition) -> Tensor:
        """Logits `[B, h, w, K]` by teacher forcing of codes `[B, h, w]`.

        Raises:
            DataError: where a code is out of range, or the condition is not what the prior was built for.
        """
        self._check(codes)
        flat = codes.flatten(1).long()
        start = flat.new_full((len(flat), 1), self.codebook_size)
        tokens = self.embedding(torch.cat([start, flat[:, :-1]], dim=1))
        tokens = tokens + self._inputs(condition, len(codes), codes.shape[1:])
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens).view(*codes.shape, self.codebook_size)

    def make_cache(self, condition: Condition, batch: int, grid: Sequence[int]) -> TransformerCache:
        """Encode the condition, once, and preallocate keys and values for a whole grid (h, w)."""
        inputs = self._inputs(condition, batch, grid)
        layers, heads, head_width = self._shape
        keys = inputs.new_zeros(layers, batch, heads, inputs.shape[1], head_width)
        return TransformerCache(inputs=inputs, keys=keys, values=torch.zeros_like(keys), position=0)

    def step(self, previous: Tensor | None, cache: TransformerCache) -> tuple[Tensor, TransformerCache]:
        """Logits `[B, K]` of the next position, and the cache for the one after it.

        Raises:
            ValueError: where the grid is already complete, or `previous` is missing after the first position.
        """
        batch, length, _ = cache.inputs.shape
        if cache.position >= length:
            raise ValueError(f"the cache was made for {length} positions, all of which are filled; make a new one")
        if (previous is None) != (cache.position == 0):
            raise ValueError("previous must be None at the first position, and the codes of the one before later on")
        if previous is None:
            previous = torch.full((batch,), self.codebook_size, dtype=torch.int64, device=cache.inputs.device)
        token = (self.embedding(previous) + cache.inputs[:, cache.position]).unsqueeze(1)
        for i, block in enumerate(self.blocks):
            token = block.step(token, cache.keys[i], cache.values[i], cache.position)  # type: ignore[operator]
        return self.head(token[:, 0]), replace(cache, position=cache.position + 1)

    def _inputs(self, condition: Condition, batch: int, grid: Sequence[int]) -> Tensor:
        features = self.condition(condition, batch, grid).flatten(2).transpose(1, 2)
        weight = self.positions.weight
        return features + self.positions(grid_waves(grid, weight.shape[1], weight))

    def _check(self, codes: Tensor) -> None:
        if torch.compiler.is_compiling() or not codes.numel():
            return
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise DataError(f"codes must be in 0 .. {self.codebook_size - 1}; received {low} .. {high}")

    def _reset_parameters(self) -> None:
        """Small normal weights, smaller still where a block writes into the residual stream (GPT-2's scheme)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or "readers" in name or "dense" in name:
                continue
            writes = name.endswith(("attention.output.weight", "feed_forward.3.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.blocks)) if writes else 0.02)


def grid_waves(grid: Sequence[int], channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, `[T, channels]`, for a grid of any size.

    Args:
        grid: (h, w), or any number of axes.
        channels: shared out over axes; what does not divide evenly stays zero.
        like: gives type and device.
    """
    per_axis = channels // (2 * len(grid))
    frequencies = torch.exp(torch.arange(per_axis, device=like.device) * (-math.log(100.0) / per_axis)) * (math.pi / 2)
    axes = torch.meshgrid(*(torch.arange(n, device=like.device) for n in grid), indexing="ij")
    angles = [axis.flatten().unsqueeze(1) * frequencies for axis in axes]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return functional.pad(waves, (0, channels - waves.shape[1])).to(like.dtype)
