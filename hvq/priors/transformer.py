"""A causal transformer over the codes of one level.

Letters: B batch, `*grid` the level's axes, T positions in raster order, G codes per position, E channels, A heads,
d channels of a head, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.errors import ConfigurationError, DataError
from hvq.priors.attention import AttentionCache, Turning, attend, attend_step, make_attention_cache, split_heads
from hvq.priors.base import Prior, PriorLevel
from hvq.priors.condition import Condition
from hvq.priors.positions import grid_turns, grid_waves
from hvq.priors.step_product import Change, Norm, StepProduct, gated_silu, normalized
from hvq.recomputation import recomputed

# Scale, shift and gate of attention, and of feed-forward.
_MODULATIONS = 6


@dataclass(frozen=True)
class _BlockState:
    projections: StepProduct
    output: StepProduct
    expand: StepProduct
    contract: StepProduct
    attention_norm: Norm
    attention_gate: Tensor
    feed_forward_norm: Norm
    feed_forward_gate: Tensor
    turning: Turning
    cache: AttentionCache


@dataclass(frozen=True)
class TransformerState:
    """What sampling carries from position to position.

    Attributes:
        inputs: `[B, T, E]`, what each position is told beside the codes.
        blocks: laid out weights, and keys and values, of each.
    """

    inputs: Tensor
    blocks: list[_BlockState]


class _Block(nn.Module):
    """Attention, then a gated feed-forward, each behind a norm whose scale, shift and gate the condition sets."""

    def __init__(self, width: int, heads: int, key_value_heads: int, window: int | None, dropout: float) -> None:
        super().__init__()
        head_width = width // heads
        # Two thirds of the usual four times the width: the gate takes the third share of weights.
        hidden = -(-8 * width // 3 // 16) * 16
        self.projections = nn.Linear(width, width + 2 * key_value_heads * head_width, bias=False)
        self.query_scale = nn.Parameter(torch.ones(head_width))
        self.key_scale = nn.Parameter(torch.ones(head_width))
        self.output = nn.Linear(width, width, bias=False)
        self.expand = nn.Linear(width, 2 * hidden, bias=False)
        self.contract = nn.Linear(hidden, width, bias=False)
        # What the condition adds to: its part is the same for all blocks, this one each block's own.
        self.modulation = nn.Parameter(torch.zeros(_MODULATIONS, width))
        self.dropout = nn.Dropout(dropout)
        self.heads, self.window = heads, window
        self.widths = [width, key_value_heads * head_width, key_value_heads * head_width]

    def forward(self, tokens: Tensor, modulation: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        attention_norm, attention_gate, feed_forward_norm, feed_forward_gate = self._modulated(modulation)
        attended = self.output(self._attend(attention_norm(tokens), self._turning(turns)))
        tokens = tokens + attention_gate * self.dropout(attended)
        hidden = self.contract(gated_silu(self.expand(feed_forward_norm(tokens))))
        return tokens + feed_forward_gate * self.dropout(hidden)

    def make_state(self, modulation: Tensor, turns: tuple[Tensor, Tensor]) -> _BlockState:
        """Before the first position; `modulation` is `[B, 6, E]`."""
        attention_norm, attention_gate, feed_forward_norm, feed_forward_gate = self._modulated(modulation)
        head_width, length = self.widths[0] // self.heads, len(turns[0])
        return _BlockState(
            projections=StepProduct.of(self.projections),
            output=StepProduct.of(self.output),
            expand=StepProduct.of(self.expand),
            contract=StepProduct.of(self.contract),
            attention_norm=attention_norm,
            attention_gate=attention_gate,
            feed_forward_norm=feed_forward_norm,
            feed_forward_gate=feed_forward_gate,
            turning=self._turning(turns),
            cache=make_attention_cache(
                self.output.weight,
                len(modulation),
                self.widths[1] // head_width,
                length if self.window is None else min(length, self.window),
                head_width,
            ),
        )

    def step(self, token: Tensor, position: int, state: _BlockState) -> Tensor:
        """The same for one position, `[B, E]`."""
        query, key, value = state.projections(token, norm=state.attention_norm).split(self.widths, dim=1)
        attended = attend_step(query, key, value, position, state.cache, heads=self.heads, turning=state.turning)
        token = state.output(attended, gate=state.attention_gate, add=token)
        hidden = state.expand(token, norm=state.feed_forward_norm)
        return state.contract(hidden, change=Change.GATED_SILU, gate=state.feed_forward_gate, add=token)

    def _attend(self, tokens: Tensor, turning: Turning) -> Tensor:
        query, key, value = self.projections(tokens).split(self.widths, dim=-1)
        head_width = self.widths[0] // self.heads
        query, key, value = (split_heads(part, part.shape[-1] // head_width) for part in (query, key, value))
        query = turning.turned(query, self.query_scale).to(value.dtype)
        key = turning.turned(key, self.key_scale).to(value.dtype)
        return attend(query, key, value, window=self.window)

    def _turning(self, turns: tuple[Tensor, Tensor]) -> Turning:
        return Turning(self.query_scale, self.key_scale, *turns)

    def _modulated(self, modulation: Tensor) -> tuple[Norm, Tensor, Norm, Tensor]:
        """Norm and gate of attention, then of feed-forward, of `[B, 6, E]` or `[B, 6, 1, E]`."""
        own = self.modulation if modulation.dim() == 3 else self.modulation.unsqueeze(1)
        scale, shift, gate, other_scale, other_shift, other_gate = (modulation + own).unbind(dim=1)
        return Norm(1 + scale, shift), 1 + gate, Norm(1 + other_scale, other_shift), 1 + other_gate


class TransformerPrior(Prior):
    """A causal transformer, told places on the grid by rotary positions, and the condition by adaptive norms.

    Position t is given the code of position t - 1, its place on the grid, and the features of the condition there. The
    parts are those of present language models: root-mean-square norms (arXiv 1910.07467), rotary positions (arXiv
    2104.09864) along each axis of the grid, normalised queries and keys (arXiv 2010.04245), gated feed-forward (arXiv
    2002.05202), grouped keys and values (arXiv 2305.13245); class and vector set scale, shift and gate of every norm
    (arXiv 2212.09748).

    Args:
        width: E.
        layers: blocks of attention and feed-forward.
        heads: A, a divisor of `width`.
        key_value_heads: a divisor of `heads`, as many of which share keys and values; None for one to one. Fewer make
            the cache of sampling smaller, and steps of long grids faster.
        window: positions that one attends to, itself and those before it; None for all. As many as r rows have let it
            see r rows.
        dropout: in training, after attention and feed-forward.
        context_blocks: residual blocks of convolutions that read each coarser level.
        recompute: whether blocks are computed again in the backward pass, which takes time and spares memory.
        level: what every kind is built for, `PriorLevel`: `codebook_size`, `coarser`, `num_classes` and so on.

    Raises:
        ConfigurationError: where numbers do not divide each other.

    >>> prior = TransformerPrior(codebook_size=7, coarser={"top": 5}, width=16, layers=1, heads=2)
    >>> condition = Condition(codes={"top": torch.zeros(2, 2, 3, dtype=torch.int64)})
    >>> prior(torch.zeros(2, 4, 6, dtype=torch.int64), condition).shape
    torch.Size([2, 4, 6, 7])
    """

    def __init__(
        self,
        *,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        key_value_heads: int | None = None,
        window: int | None = None,
        dropout: float = 0.1,
        context_blocks: int = 2,
        recompute: bool = False,
        **level: Unpack[PriorLevel],
    ) -> None:
        super().__init__(**level)
        key_value_heads = key_value_heads or heads
        _check_sizes(width, heads, key_value_heads, window)
        self.recompute = recompute
        self.embedding = self._make_embedding(width)
        # Stands before the first position.
        self.start = nn.Parameter(torch.zeros(1, width))
        self.positions = nn.Linear(width, width)
        self.condition = self._make_condition(width, context_blocks, spatial_dims=self.spatial_dims)
        self.modulation = nn.Linear(width, _MODULATIONS * width)
        self.blocks = nn.ModuleList(_Block(width, heads, key_value_heads, window, dropout) for _ in range(layers))
        self.norm_scale = nn.Parameter(torch.ones(width))
        self.head = self._make_head(width)
        self._head_width = width // heads
        self._reset_parameters()

    @property
    def units(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def features(self, codes: Tensor, condition: Condition) -> Tensor:
        """Features `[B, *grid, E]` of codes `[B, *grid, G]`."""
        batch, grid = len(codes), codes.shape[1:-1]
        before = self.embedding(codes.flatten(1, -2)[:, :-1])
        tokens = torch.cat([self.start.expand(batch, 1, -1), before], dim=1) + self._inputs(condition, batch, grid)
        modulation = self._modulations(condition, batch).unsqueeze(2)
        turns = grid_turns(grid, self._head_width, tokens)
        for block in self.blocks:
            tokens = recomputed(block, tokens, modulation, turns, when=self.recompute and self.training)
        return normalized(tokens, self.norm_scale).view(*codes.shape[:-1], -1)

    def make_state(self, condition: Condition, batch: int, grid: Sequence[int]) -> TransformerState:
        """Encode the condition, once, lay out the weights, and preallocate keys and values for a whole grid."""
        inputs = self._inputs(condition, batch, grid).contiguous()
        modulation = self._modulations(condition, batch)
        turns = grid_turns(grid, self._head_width, inputs)
        return TransformerState(inputs, [block.make_state(modulation, turns) for block in self.blocks])  # type: ignore[operator]

    def step_features(self, previous: Tensor | None, state: TransformerState, position: int) -> Tensor:
        """Features `[B, E]` of one position, given int64 `[B, G]` of the one before."""
        token = (self.start if previous is None else self.embedding(previous)) + state.inputs.select(1, position)
        for block, of_block in zip(self.blocks, state.blocks, strict=True):
            token = block.step(token, position, of_block)  # type: ignore[operator]
        return normalized(token, self.norm_scale)

    def _inputs(self, condition: Condition, batch: int, grid: Sequence[int]) -> Tensor:
        if len(grid) != self.spatial_dims:
            raise DataError(
                f"this transformer takes grids of {self.spatial_dims} axes; received {len(grid)}: make it with "
                f"spatial_dims={len(grid)}"
            )
        features = self.condition(condition, batch, grid).flatten(2).transpose(1, 2)
        weight = self.positions.weight
        return features + self.positions(grid_waves(grid, weight.shape[1], weight))

    def _modulations(self, condition: Condition, batch: int) -> Tensor:
        """What class and vector do to every norm, `[B, 6, E]`."""
        everywhere = self.condition.everywhere(condition, batch)
        known = functional.silu(normalized(everywhere, torch.ones_like(self.norm_scale)))
        return self.modulation(known).unflatten(1, (_MODULATIONS, -1))

    def _reset_parameters(self) -> None:
        """Small normal weights, smaller still where a block writes into the residual stream (GPT-2's scheme)."""
        for name, parameter in self.named_parameters():
            # What reads the condition keeps the weights of its own layers.
            if parameter.dim() < 2 or name.startswith(("condition.readers.", "condition.dense.")):
                continue
            writes = name.endswith(("output.weight", "contract.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.blocks)) if writes else 0.02)
        for block in self.blocks:
            nn.init.zeros_(block.modulation)  # type: ignore[arg-type]


def _check_sizes(width: int, heads: int, key_value_heads: int, window: int | None) -> None:
    if width % (2 * heads):
        raise ConfigurationError(f"width must be a multiple of twice heads; received {width} and {heads} heads")
    if heads % key_value_heads:
        raise ConfigurationError(f"heads must be a multiple of key_value_heads; received {heads} and {key_value_heads}")
    if window is not None and window < 1:
        raise ConfigurationError(f"window must be at least 1, or None; received {window}")
