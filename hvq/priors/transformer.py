"""A causal transformer over the codes of one level.

Letters: B batch, `*grid` the level's axes, T positions in raster order, G codes per position, E channels, A heads,
K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.errors import ConfigurationError
from hvq.priors.attention import AttentionState, attend, attend_step, make_attention_state, split_heads
from hvq.priors.base import Prior
from hvq.priors.condition import Condition, ConditionEncoder
from hvq.priors.embedding import CodeEmbedding
from hvq.priors.head import CodeHead


@dataclass(frozen=True)
class TransformerState:
    """What sampling carries from position to position.

    Attributes:
        inputs: `[B, T, E]`, what each position is told beside the codes.
        layers: keys and values of each.
    """

    inputs: Tensor
    layers: list[AttentionState]


class _Attention(nn.Module):
    """Causal self-attention of all positions, or of one position against a cache."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(attend(*self._split(tokens)))

    def step(self, token: Tensor, position: int, state: AttentionState) -> Tensor:
        """Attend from one position `[B, E]`; its key and value are written into the cache."""
        return self.output(attend_step(*self._split(token), position, state))

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (split_heads(part, self.heads) for part in self.projections(tokens).chunk(3, dim=-1))
        return query, key, value


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

    def step(self, token: Tensor, position: int, state: AttentionState) -> Tensor:
        token = token + self.attention.step(self.attention_norm(token), position, state)
        return token + self.feed_forward(token)


class TransformerPrior(Prior):
    """A causal transformer with positions on the grid, conditioned on coarser levels and on the class.

    Position t is given the code of position t - 1, its place on the grid (row and column), and the features of the
    condition there.

    Args:
        codebook_size: K of this level.
        coarser: codebook size of every coarser level by name, coarse to fine.
        num_classes: number of classes; 0 without.
        codes_per_position: G, codes of each position, drawn in order.
        coarser_codes_per_position: the same of those coarser levels that have more than one.
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
        codes_per_position: int = 1,
        coarser_codes_per_position: Mapping[str, int] | None = None,
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
        self.codes_per_position = codes_per_position
        self.embedding = CodeEmbedding(
            codebook_size=codebook_size, channels=width, codes_per_position=codes_per_position
        )
        # Stands before the first position.
        self.start = nn.Parameter(torch.zeros(1, width))
        self.positions = nn.Linear(width, width)
        self.condition = ConditionEncoder(
            channels=width,
            coarser=self.coarser,
            coarser_codes_per_position=coarser_codes_per_position,
            num_classes=num_classes,
            blocks=context_blocks,
            feature_channels=feature_channels,
            vector_size=vector_size,
            spatial_dims=spatial_dims,
        )
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = CodeHead(channels=width, codebook_size=codebook_size, codes_per_position=codes_per_position)
        self._heads = (heads, width // heads)
        self._reset_parameters()

    def features(self, codes: Tensor, condition: Condition) -> Tensor:
        """Features `[B, *grid, E]` of codes `[B, *grid, G]`."""
        flat = codes.flatten(1, -2)
        tokens = torch.cat([self.start.expand(len(codes), 1, -1), self.embedding(flat[:, :-1])], dim=1)
        tokens = tokens + self._inputs(condition, len(codes), codes.shape[1:-1])
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).view(*codes.shape[:-1], -1)

    def make_state(self, condition: Condition, batch: int, grid: Sequence[int]) -> TransformerState:
        """Encode the condition, once, and preallocate keys and values for a whole grid."""
        inputs = self._inputs(condition, batch, grid)
        heads, head_width = self._heads
        layers = [make_attention_state(inputs, batch, heads, inputs.shape[1], head_width) for _ in self.blocks]
        return TransformerState(inputs, layers)

    def step_features(self, previous: Tensor | None, state: TransformerState, position: int) -> Tensor:
        """Features `[B, E]` of one position, given int64 `[B, G]` of the one before."""
        token = (self.start if previous is None else self.embedding(previous)) + state.inputs[:, position]
        for block, layer in zip(self.blocks, state.layers, strict=True):
            token = block.step(token, position, layer)  # type: ignore[operator]
        return self.norm(token)

    def _inputs(self, condition: Condition, batch: int, grid: Sequence[int]) -> Tensor:
        features = self.condition(condition, batch, grid).flatten(2).transpose(1, 2)
        weight = self.positions.weight
        return features + self.positions(grid_waves(grid, weight.shape[1], weight))

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
