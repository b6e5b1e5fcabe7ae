"""The gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328), the prior of the VQ-VAE paper.

Letters: B batch, h w grid, K codebook size, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn
from torch.nn import functional

from hvq.priors.base import PriorLevel
from hvq.priors.causal_convolution import ColumnConvolution, RowConvolution
from hvq.priors.condition import Condition
from hvq.priors.raster import RasterPrior, RasterState, embed
from hvq.priors.step_product import RowWindow, StepProduct
from hvq.priors.taps import CodeTaps, offsets_above, offsets_before
from hvq.recomputation import recomputed


@dataclass
class _LayerState:
    """Laid out weights, the rows that both stacks see, and what is added to a row of the horizontal stack."""

    vertical: StepProduct
    horizontal: StepProduct
    link: StepProduct
    context: StepProduct
    output: StepProduct
    vertical_window: RowWindow
    horizontal_window: RowWindow
    # [B, w, 2·E]
    added: Tensor | None = None


def gated(features: Tensor, dim: int) -> Tensor:
    """tanh of one half times sigmoid of the other, equation (2) of arXiv 1606.05328."""
    content, gate = features.chunk(2, dim=dim)
    return content.tanh() * gate.sigmoid()


class _GatedLayer(nn.Module):
    """One layer of both stacks: the vertical sees rows above, the horizontal its own row and the vertical."""

    def __init__(self, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.vertical = RowConvolution(channels, 2 * channels, rows=kernel // 2 + 1, columns=kernel)
        self.horizontal = ColumnConvolution(channels, 2 * channels, taps=kernel // 2 + 1)
        self.link = nn.Linear(2 * channels, 2 * channels)
        self.context = nn.Linear(channels, 4 * channels)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vertical: Tensor, horizontal: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        above = self.vertical(vertical)
        vertical_context, horizontal_context = self.context(context).movedim(-1, 1).chunk(2, dim=1)
        added = self.link(above.movedim(1, -1)).movedim(-1, 1) + horizontal_context
        out = self.dropout(gated(self.horizontal(horizontal) + added, dim=1))
        horizontal = horizontal + self.output(out.movedim(1, -1)).movedim(-1, 1)
        return gated(above + vertical_context, dim=1), horizontal

    def make_state(self, batch: int, width: int) -> _LayerState:
        weight, reach = self.output.weight, self.vertical.margin
        return _LayerState(
            vertical=self.vertical.make_product(),
            horizontal=self.horizontal.make_product(),
            link=StepProduct.of(self.link),
            context=StepProduct.of(self.context),
            output=StepProduct.of(self.output),
            vertical_window=RowWindow.make(weight, batch, self.vertical.rows, width, reach),
            horizontal_window=RowWindow.make(weight, batch, 1, width, reach),
        )

    def start_row(self, vertical: Tensor, context: Tensor, state: _LayerState) -> Tensor:
        """The vertical stack `[B, w, E]` of a whole row, which hangs on the rows above alone."""
        window = state.vertical_window
        window.advance()
        window.write_row(vertical)
        above = state.vertical.of_rows(window, self.vertical.rows, 2 * self.vertical.margin + 1)
        shape = above.shape[:2]
        vertical_context, horizontal_context = state.context(context.flatten(0, 1)).chunk(2, dim=-1)
        state.added = state.link(above.flatten(0, 1), add=horizontal_context).unflatten(0, shape)
        return gated(above + vertical_context.unflatten(0, shape), dim=-1)

    def step(self, horizontal: Tensor, column: int, state: _LayerState) -> Tensor:
        assert state.added is not None
        window = state.horizontal_window
        window.write(horizontal, column)
        out = state.horizontal.of_position(window, column, self.horizontal.taps, state.added.select(1, column))
        return state.output(gated(out, dim=-1), add=horizontal)


@dataclass
class _Layers:
    """How codes enter both stacks, and the states of their layers."""

    vertical_table: Tensor
    horizontal_table: Tensor
    layers: list[_LayerState]


class PixelCNNPrior(RasterPrior):
    """Two stacks of gated convolutions: one reads the rows above, one its own row, so that no code is out of sight.

    The vertical stack hangs on finished rows alone, so sampling computes it once a row, for all of its positions; a
    step is left with the horizontal stack.

    Args:
        width: E.
        layers: of the two stacks.
        kernel: columns that a layer sees, an odd number.
        dropout: in training, in each layer.
        shared_embedding: one embedding of codes for all taps of the first layer, in place of a table for each.
        context_blocks: residual blocks of convolutions that read each coarser level.
        recompute: whether layers are computed again in the backward pass, which takes time and spares memory.
        level: what every kind is built for, `PriorLevel`: `codebook_size`, `coarser`, `num_classes` and so on.

    >>> import torch
    >>> prior = PixelCNNPrior(codebook_size=7, coarser={"top": 5}, width=16, layers=2)
    >>> condition = Condition(codes={"top": torch.zeros(2, 2, 3, dtype=torch.int64)})
    >>> prior(torch.zeros(2, 4, 6, dtype=torch.int64), condition).shape
    torch.Size([2, 4, 6, 7])
    """

    def __init__(
        self,
        *,
        width: int = 128,
        layers: int = 12,
        kernel: int = 5,
        dropout: float = 0.1,
        shared_embedding: bool = False,
        context_blocks: int = 2,
        recompute: bool = False,
        **level: Unpack[PriorLevel],
    ) -> None:
        super().__init__(width=width, context_blocks=context_blocks, kernel=kernel, **level)
        self.recompute = recompute
        reach = kernel // 2
        above, before = offsets_above(reach, reach), offsets_before(reach)
        self.vertical = self._make_taps(width, above, shared=shared_embedding)
        self.horizontal = self._make_taps(width, [*above, *before], shared=shared_embedding)
        self.layers = nn.ModuleList(_GatedLayer(width, kernel, dropout) for _ in range(layers))
        self.output = nn.Linear(width, width)

    @property
    def units(self) -> list[nn.Module]:
        """The layers."""
        return list(self.layers)

    @property
    def taps(self) -> CodeTaps:
        """Both read codes padded alike."""
        return self.vertical

    def grid_features(self, codes: Tensor, condition: Condition) -> Tensor:
        """Features `[B, h, w, E]` of codes `[B, h, w, G]`."""
        grid, padded = codes.shape[1:-1], self.taps.pad(codes)
        context = self.encode_condition(codes, condition).movedim(1, -1)
        vertical, horizontal = embed(self.vertical, padded, grid), embed(self.horizontal, padded, grid)
        for layer in self.layers:
            vertical, horizontal = recomputed(
                layer, vertical, horizontal, context, when=self.recompute and self.training
            )
        return self._finish(horizontal.movedim(1, -1))

    def make_layers(self, state: RasterState, batch: int, grid: Sequence[int]) -> _Layers:
        """States of all layers before the first position."""
        layers = [layer.make_state(batch, grid[1]) for layer in self.layers]  # type: ignore[operator]
        return _Layers(self.vertical.tables(), self.horizontal.tables(), layers)

    def start_row(self, state: RasterState, row: int) -> None:
        """The vertical stack of a whole row."""
        place, layers = {"rows": (row, row + 1), "columns": (0, state.width)}, state.layers
        vertical = self.vertical(state.codes, **place, table=layers.vertical_table)[:, 0]
        for layer, of_layer in zip(self.layers, layers.layers, strict=True):
            vertical = layer.start_row(vertical, state.context.select(1, row), of_layer)  # type: ignore[operator]

    def step_position(self, state: RasterState, row: int, column: int) -> Tensor:
        """The horizontal stack of one position."""
        place, layers = {"rows": (row, row + 1), "columns": (column, column + 1)}, state.layers
        horizontal = self.horizontal(state.codes, **place, table=layers.horizontal_table)[:, 0, 0]
        for layer, of_layer in zip(self.layers, layers.layers, strict=True):
            horizontal = layer.step(horizontal, column, of_layer)  # type: ignore[operator]
        return self._finish(horizontal)

    def _finish(self, features: Tensor) -> Tensor:
        return functional.elu(self.output(functional.elu(features)))
