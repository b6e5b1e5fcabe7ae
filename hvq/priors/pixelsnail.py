"""PixelSNAIL (Chen et al. 2017, arXiv 1712.09763), in the form that VQ-VAE-2 uses it in.

Letters: B batch, h w grid, T = h·w positions in raster order, K codebook size, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.errors import ConfigurationError
from hvq.priors.attention import AttentionCache, attend, attend_step, make_attention_cache, split_heads
from hvq.priors.base import PriorLevel
from hvq.priors.causal_convolution import CausalConvolution, CausalState
from hvq.priors.condition import Condition
from hvq.priors.raster import RasterPrior, RasterState, embed
from hvq.priors.step_product import Change, StepProduct
from hvq.priors.taps import CodeTaps, offsets_above, offsets_before
from hvq.recomputation import recomputed


@dataclass
class _ResidualState:
    first: CausalState
    second: CausalState
    context: StepProduct | None
    auxiliary: StepProduct | None


class _GatedResidual(nn.Module):
    """Two causal convolutions, the second with a gate, around which the features pass unchanged."""

    def __init__(
        self, channels: int, inner: int, kernel: int, dropout: float, *, context: int = 0, auxiliary: int = 0
    ) -> None:
        super().__init__()
        self.first = CausalConvolution(channels, inner, kernel=kernel)
        self.second = CausalConvolution(inner, 2 * channels, kernel=kernel)
        self.context = nn.Linear(context, 2 * channels, bias=False) if context else None
        self.auxiliary = nn.Linear(auxiliary, inner, bias=False) if auxiliary else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, *, context: Tensor | None = None, auxiliary: Tensor | None = None) -> Tensor:
        """Features `[B, E, h, w]`; `context` and `auxiliary` come as `[B, h, w, channels]`."""
        hidden = self.first(features)
        if self.auxiliary is not None and auxiliary is not None:
            hidden = hidden + self.auxiliary(functional.elu(auxiliary)).movedim(-1, 1)
        hidden = self.second(self.dropout(hidden))
        if self.context is not None and context is not None:
            hidden = hidden + self.context(context).movedim(-1, 1)
        return features + functional.glu(hidden, dim=1)

    def make_state(self, batch: int, width: int) -> _ResidualState:
        return _ResidualState(
            first=self.first.make_state(batch, width),
            second=self.second.make_state(batch, width),
            context=None if self.context is None else StepProduct.of(self.context),
            auxiliary=None if self.auxiliary is None else StepProduct.of(self.auxiliary),
        )

    def start_row(self, state: _ResidualState, context: Tensor) -> None:
        """Before the first position of a row, of which the condition is `[B, w, E]`."""
        added = None if state.context is None else state.context(context.flatten(0, 1)).unflatten(0, context.shape[:2])
        self.first.start_row(state.first)
        self.second.start_row(state.second, added)

    def step(self, features: Tensor, column: int, state: _ResidualState, auxiliary: Tensor | None = None) -> Tensor:
        """The same for one position, `[B, E]`."""
        extra = None
        if state.auxiliary is not None and auxiliary is not None:
            extra = state.auxiliary(auxiliary, change=Change.ELU)
        hidden = self.first.step(features, column, state.first, extra)
        hidden = self.second.step(hidden, column, state.second)
        return features + functional.glu(hidden, dim=1)


@dataclass
class _AttentionState:
    key: _ResidualState
    query: _ResidualState
    output: _ResidualState
    query_map: StepProduct
    key_value_map: StepProduct
    cache: AttentionCache


class _AttentionPart(nn.Module):
    """Attends from what a block has made of its input to what earlier positions were given and made of it."""

    def __init__(self, channels: int, heads: int, dropout: float, *, to_self: bool) -> None:
        super().__init__()
        inner = channels // 2
        key_channels, query_channels = 2 * channels + 2, channels + 2
        self.key_residual = _GatedResidual(key_channels, channels, 1, dropout)
        self.query_residual = _GatedResidual(query_channels, channels, 1, dropout)
        self.query = nn.Linear(query_channels, inner)
        self.key_value = nn.Linear(key_channels, 2 * inner)
        self.output = _GatedResidual(channels, channels, 1, dropout, auxiliary=inner)
        self.heads, self.inner, self.to_self = heads, inner, to_self

    def forward(self, given: Tensor, made: Tensor, coordinates: Tensor) -> Tensor:
        keys = self.key_residual(torch.cat([given, made, coordinates], dim=1)).flatten(2).transpose(1, 2)
        queries = self.query_residual(torch.cat([made, coordinates], dim=1)).flatten(2).transpose(1, 2)
        key, value = self.key_value(keys).chunk(2, dim=-1)
        query, key, value = (split_heads(tokens, self.heads) for tokens in (self.query(queries), key, value))
        attended = attend(query, key, value, to_self=self.to_self)
        return self.output(made, auxiliary=attended.unflatten(1, made.shape[2:]))

    def make_state(self, batch: int, grid: Sequence[int]) -> _AttentionState:
        length, head_width = grid[0] * grid[1], self.inner // self.heads
        return _AttentionState(
            key=self.key_residual.make_state(batch, grid[1]),
            query=self.query_residual.make_state(batch, grid[1]),
            output=self.output.make_state(batch, grid[1]),
            query_map=StepProduct.of(self.query),
            key_value_map=StepProduct.of(self.key_value),
            cache=make_attention_cache(self.query.weight, batch, self.heads, length, head_width),
        )

    def step(self, given: Tensor, made: Tensor, coordinates: Tensor, position: int, state: _AttentionState) -> Tensor:
        keys = self.key_residual.step(torch.cat([given, made, coordinates], dim=1), 0, state.key)
        queries = self.query_residual.step(torch.cat([made, coordinates], dim=1), 0, state.query)
        key, value = state.key_value_map(keys).chunk(2, dim=-1)
        attended = attend_step(
            state.query_map(queries), key, value, position, state.cache, heads=self.heads, to_self=self.to_self
        )
        return self.output.step(made, 0, state.output, auxiliary=attended)


@dataclass
class _BlockState:
    residuals: list[_ResidualState]
    attention: _AttentionState | None
    output: StepProduct | None


class _Block(nn.Module):
    """Residual convolutions, then attention, or a linear map that is told the place on the grid."""

    def __init__(self, residuals: Sequence[_GatedResidual], attention: _AttentionPart | None, channels: int) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(residuals)
        self.attention = attention
        self.output = None if attention else nn.Linear(channels + 2, channels)

    def forward(self, given: Tensor, coordinates: Tensor, context: Tensor) -> Tensor:
        made = given
        for residual in self.residuals:
            made = residual(made, context=context)
        if self.attention is not None:
            return self.attention(given, made, coordinates)
        assert self.output is not None
        return self.output(torch.cat([made, coordinates], dim=1).movedim(1, -1)).movedim(-1, 1)

    def make_state(self, batch: int, grid: Sequence[int]) -> _BlockState:
        return _BlockState(
            residuals=[residual.make_state(batch, grid[1]) for residual in self.residuals],  # type: ignore[operator]
            attention=None if self.attention is None else self.attention.make_state(batch, grid),
            output=None if self.output is None else StepProduct.of(self.output),
        )

    def start_row(self, state: _BlockState, context: Tensor) -> None:
        for residual, of_residual in zip(self.residuals, state.residuals, strict=True):
            residual.start_row(of_residual, context)  # type: ignore[operator]

    def step(self, given: Tensor, coordinates: Tensor, column: int, position: int, state: _BlockState) -> Tensor:
        made = given
        for residual, of_residual in zip(self.residuals, state.residuals, strict=True):
            made = residual.step(made, column, of_residual)  # type: ignore[operator]
        if self.attention is not None and state.attention is not None:
            return self.attention.step(given, made, coordinates, position, state.attention)
        assert state.output is not None
        return state.output(torch.cat([made, coordinates], dim=1))


@dataclass
class _Layers:
    """States of the blocks and of what follows them, how codes enter, and the place of each position `[B, 2, h, w]`."""

    table: Tensor
    coordinates: Tensor
    blocks: list[_BlockState]
    outputs: list[_ResidualState]


class PixelSNAILPrior(RasterPrior):
    """Causal gated residual convolutions interleaved with causal attention.

    Every position is told the code before it, so that with attention no earlier code is out of sight. Without attention
    it is the prior of the finer levels of VQ-VAE-2, conditioned through a stack of residual
    convolutions over the coarser codes.

    Args:
        width: E.
        residual_width: channels inside residual blocks.
        blocks: each of residual convolutions and attention.
        residual_blocks: in each block.
        output_blocks: residual blocks of single positions after the last block.
        kernel: columns that a convolution sees, an odd number; it sees as many rows.
        attention: whether blocks attend to all earlier positions.
        heads: of attention; `width` is a multiple of twice as many.
        attend_to_self: whether a position is among those that it attends to (what it knows of itself, which is what
            was before it); public implementations leave it out.
        dropout: in training, in residual blocks.
        shared_embedding: one embedding of codes for all taps of the first layer, in place of a table for each.
        context_blocks: residual blocks of convolutions that read each coarser level.
        context_width: channels of these; `width` by default.
        gated_context: whether they have gates, and codes enter them by a convolution, as in public implementations.
        recompute: whether blocks are computed again in the backward pass, which takes time and spares memory.
        level: what every kind is built for, `PriorLevel`: `codebook_size`, `coarser`, `num_classes` and so on.

    >>> prior = PixelSNAILPrior(codebook_size=7, coarser={"top": 5}, width=16, heads=2, blocks=1, residual_blocks=1)
    >>> condition = Condition(codes={"top": torch.zeros(2, 2, 3, dtype=torch.int64)})
    >>> prior(torch.zeros(2, 4, 6, dtype=torch.int64), condition).shape
    torch.Size([2, 4, 6, 7])
    """

    def __init__(
        self,
        *,
        width: int = 128,
        residual_width: int = 128,
        blocks: int = 2,
        residual_blocks: int = 4,
        output_blocks: int = 0,
        kernel: int = 5,
        attention: bool = True,
        heads: int = 8,
        attend_to_self: bool = True,
        dropout: float = 0.1,
        shared_embedding: bool = False,
        context_blocks: int = 2,
        context_width: int | None = None,
        gated_context: bool = False,
        recompute: bool = False,
        **level: Unpack[PriorLevel],
    ) -> None:
        context_width = context_width or width
        super().__init__(
            width=width,
            context_blocks=context_blocks,
            kernel=kernel,
            context_width=context_width,
            gated_context=gated_context,
            **level,
        )
        if attention and width % (2 * heads):
            raise ConfigurationError(f"width must be a multiple of twice heads; received {width} and {heads} heads")
        self.recompute = recompute
        reach = kernel // 2
        offsets = [*offsets_above(reach, reach), *offsets_before(reach)]
        self.inputs = self._make_taps(width, offsets, shared=shared_embedding)
        self.line_start = self._make_embedding(width)
        self.blocks = nn.ModuleList(
            _Block(
                [
                    _GatedResidual(width, residual_width, kernel, dropout, context=context_width)
                    for _ in range(residual_blocks)
                ],
                _AttentionPart(width, heads, dropout, to_self=attend_to_self) if attention else None,
                width,
            )
            for _ in range(blocks)
        )
        self.outputs = nn.ModuleList(_GatedResidual(width, residual_width, 1, dropout) for _ in range(output_blocks))

    @property
    def units(self) -> list[nn.Module]:
        """The parts of the blocks, of which there may be a single one, and what follows them."""
        return [module for module in self.modules() if isinstance(module, (_GatedResidual, _AttentionPart))]

    @property
    def taps(self) -> CodeTaps:
        """How codes enter."""
        return self.inputs

    def grid_features(self, codes: Tensor, condition: Condition) -> Tensor:
        """Features `[B, h, w, E]` of codes `[B, h, w, G]`."""
        grid, padded = codes.shape[1:-1], self.taps.pad(codes)
        context = self.encode_condition(codes, condition).movedim(1, -1)
        features = embed(self.inputs, padded, grid) + self._line_starts(codes)
        coordinates = grid_coordinates(grid, features).expand(len(codes), -1, -1, -1)
        for block in self.blocks:
            features = recomputed(block, features, coordinates, context, when=self.recompute and self.training)
        for residual in self.outputs:
            features = residual(features)
        return functional.elu(features).movedim(1, -1)

    def _line_starts(self, codes: Tensor) -> Tensor:
        """At the start of a row no tap reaches the code before, at the end of the row above: `[B, E, h, w]`."""
        ends = self.line_start(codes[:, :-1, -1]).transpose(1, 2)
        return functional.pad(ends.unsqueeze(-1), (0, codes.shape[2] - 1, 1, 0))

    def make_layers(self, state: RasterState, batch: int, grid: Sequence[int]) -> _Layers:
        """States of all layers before the first position."""
        coordinates = grid_coordinates(grid, state.context).expand(batch, -1, -1, -1)
        blocks = [block.make_state(batch, grid) for block in self.blocks]  # type: ignore[operator]
        outputs = [residual.make_state(batch, grid[1]) for residual in self.outputs]  # type: ignore[operator]
        return _Layers(self.inputs.tables(), coordinates, blocks, outputs)

    def start_row(self, state: RasterState, row: int) -> None:
        """What the rows above say to each convolution."""
        for block, of_block in zip(self.blocks, state.layers.blocks, strict=True):
            block.start_row(of_block, state.context.select(1, row))  # type: ignore[operator]

    def step_position(self, state: RasterState, row: int, column: int) -> Tensor:
        """The network for one position."""
        layers, place = state.layers, {"rows": (row, row + 1), "columns": (column, column + 1)}
        features = self.inputs(state.codes, **place, table=layers.table)[:, 0, 0]
        if column == 0 and row > 0:
            features = features + self.line_start(self.taps.read(state.codes, row - 1, state.width - 1))
        coordinates, position = layers.coordinates.select(2, row).select(2, column), row * state.width + column
        for block, of_block in zip(self.blocks, layers.blocks, strict=True):
            features = block.step(features, coordinates, column, position, of_block)  # type: ignore[operator]
        for residual, of_residual in zip(self.outputs, layers.outputs, strict=True):
            features = residual.step(features, 0, of_residual)  # type: ignore[operator]
        return functional.elu(features)


def grid_coordinates(grid: Sequence[int], like: Tensor) -> Tensor:
    """Row and column of each position, from -1/2 upwards, `[1, 2, h, w]`.

    >>> grid_coordinates((2, 4), torch.zeros(()))[0, 1, 0].tolist()
    [-0.5, -0.25, 0.0, 0.25]
    """
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) / n - 0.5 for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)
