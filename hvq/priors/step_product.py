"""Products of a few rows with weights that are laid out once, as every step of sampling computes them.

Letters: M rows, B batch, C inputs, E outputs, w width of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from hvq.priors import step_kernels


class Change(IntEnum):
    """What is done to the inputs on the way; the numbers are those of the compiled kernel."""

    NONE = 0
    ELU = 1
    NORMALIZED = 2
    GATED_SILU = 3


@dataclass(frozen=True)
class Norm:
    """Division by the root mean square, then `scale` and `shift`, each `[C]` or `[B, C]`."""

    scale: Tensor
    shift: Tensor | None = None
    epsilon: float = 1e-6

    def __call__(self, inputs: Tensor) -> Tensor:
        """The same in plain PyTorch, of `[..., C]`."""
        return normalized(inputs, self.scale, self.epsilon) + (0 if self.shift is None else self.shift)


def normalized(inputs: Tensor, scale: Tensor, epsilon: float = 1e-6) -> Tensor:
    """`[..., C]` with a root mean square of 1, times `scale`."""
    return functional.rms_norm(inputs, inputs.shape[-1:], eps=epsilon) * scale


def gated_silu(inputs: Tensor) -> Tensor:
    """SiLU of the first half of the channels times the second (SwiGLU, arXiv 2002.05202)."""
    content, gate = inputs.chunk(2, dim=-1)
    return functional.silu(content) * gate


@dataclass
class RowWindow:
    """Features of the last rows of a grid, with margins on both sides: a ring, so that nothing is moved.

    Attributes:
        values: `[B, slots, margin + w + margin, C]`, zeros where no position is.
        margin: columns on each side.
        current: the slot of the row in progress.
    """

    values: Tensor
    margin: int
    current: int = 0

    @staticmethod
    def make(like: Tensor, batch: int, rows: int, width: int, margin: int) -> RowWindow:
        """Before the first row; `like` is a weight `[E, C, ...]` that will read it."""
        return RowWindow(like.new_zeros(batch, rows, width + 2 * margin, like.shape[1]), margin)

    def advance(self) -> None:
        """Begin the next row, in the place of the oldest."""
        self.current = (self.current + 1) % self.values.shape[1]

    def row(self) -> Tensor:
        """The row in progress, `[B, margin + w + margin, C]`."""
        return self.values.select(1, self.current)

    def write(self, features: Tensor, column: int) -> None:
        """Features `[B, C]` of one position of the row in progress."""
        self.row().select(1, self.margin + column).copy_(features)

    def write_row(self, features: Tensor) -> None:
        """Features `[B, w, C]` of the whole row in progress."""
        self.row()[:, self.margin : self.margin + features.shape[1]] = features


class StepProduct:
    """A linear map, ready for steps.

    Args:
        weight: `[E, C]`.
        bias: `[E]`, or None.

    >>> product = StepProduct(torch.eye(3), torch.ones(3))
    >>> product(torch.zeros(2, 3)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._outputs = len(weight)
        self._bias = None if bias is None else bias.detach()
        self._library = step_kernels.library() if step_kernels.is_native(weight) else None
        weight = weight.detach()
        self._weight = weight if self._library is None else step_kernels.lay_out(self._library, weight)

    @classmethod
    def of(cls, linear: torch.nn.Linear) -> StepProduct:
        """That of a linear layer."""
        return cls(linear.weight, linear.bias)

    def __call__(
        self,
        inputs: Tensor,
        *,
        change: Change = Change.NONE,
        norm: Norm | None = None,
        gate: Tensor | None = None,
        add: Tensor | None = None,
    ) -> Tensor:
        """`[M, E]`: add + gate · (weight · changed inputs + bias).

        Args:
            inputs: `[M, C]`, or `[M, 2·C]` where a gate in them is applied.
            change: what is done to the inputs first.
            norm: the same, a norm.
            gate: `[M, E]`.
            add: `[M, E]`.
        """
        if self._library is None:
            return self._finish(self._changed(inputs, change, norm), gate, add)
        change = change if norm is None else Change.NORMALIZED
        width = inputs.shape[1] // 2 if change == Change.GATED_SILU else inputs.shape[1]
        return step_kernels.product(
            self._library,
            inputs,
            (0, 1, inputs.stride(0), 0, 1, 1, 0, 0, width),
            len(inputs),
            self._weight,
            self._outputs,
            change=change,
            scale=None if norm is None else norm.scale,
            shift=None if norm is None else norm.shift,
            epsilon=0.0 if norm is None else norm.epsilon,
            bias=self._bias,
            gate=gate,
            add=add,
        )

    def of_rows(self, window: RowWindow, rows: int, columns: int, add: Tensor | None = None) -> Tensor:
        """`[B, w, E]` of whole rows: position x sees `columns` columns around x, of the oldest `rows` rows.

        Args:
            window: the features.
            rows: how many of its rows, from the oldest on.
            columns: how many, an odd number.
            add: `[B, w, E]`.
        """
        values = window.values
        batch, slots, padded, channels = values.shape
        width, oldest = padded - columns + 1, (window.current + 1) % slots
        if self._library is not None:
            samples = (width, slots * padded * channels, channels)
            place = (0, *samples, rows, slots, oldest, padded * channels, columns * channels)
            flat = None if add is None else add.reshape(batch * width, self._outputs)
            out = step_kernels.product(
                self._library, values, place, batch * width, self._weight, self._outputs, bias=self._bias, add=flat
            )
            return out.view(batch, width, self._outputs)
        ordered = values.roll(-oldest, dims=1)[:, :rows].contiguous()
        # Columns lie one behind the other, so what a position sees of a row is one run of numbers.
        strides = (ordered.stride(0), ordered.stride(2), ordered.stride(1), 1)
        seen = ordered.as_strided((batch, width, rows, columns * channels), strides)
        return self._finish(seen.flatten(2), None, add)

    def of_position(self, window: RowWindow, column: int, taps: int, add: Tensor | None = None) -> Tensor:
        """`[B, E]` of one position, which sees itself and the `taps - 1` before it in the row in progress."""
        values = window.values
        batch, slots, padded, channels = values.shape
        first = column + window.margin - taps + 1
        if self._library is None:
            return self._finish(window.row()[:, first : first + taps].flatten(1), None, add)
        offset = (window.current * padded + first) * channels
        place = (offset, 1, slots * padded * channels, 0, 1, 1, 0, 0, taps * channels)
        return step_kernels.product(
            self._library, values, place, batch, self._weight, self._outputs, bias=self._bias, add=add
        )

    def _changed(self, inputs: Tensor, change: Change, norm: Norm | None) -> Tensor:
        if norm is not None:
            return norm(inputs)
        if change == Change.ELU:
            return functional.elu(inputs)
        return gated_silu(inputs) if change == Change.GATED_SILU else inputs

    def _finish(self, inputs: Tensor, gate: Tensor | None, add: Tensor | None) -> Tensor:
        out = functional.linear(inputs, self._weight, self._bias)
        out = out if gate is None else gate * out
        return out if add is None else add + out
