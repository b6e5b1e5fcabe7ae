"""Attention to earlier positions, of all positions at once or of one against a cache.

Letters: B batch, A heads, T positions, d channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AttentionState:
    """Keys and values `[B, A, T, d]`, filled position by position."""

    keys: Tensor
    values: Tensor


def make_attention_state(like: Tensor, batch: int, heads: int, length: int, width: int) -> AttentionState:
    """An empty cache of `heads` heads of `width` channels, of the type and device of `like`."""
    shape = (batch, heads, length, width)
    return AttentionState(like.new_zeros(shape), like.new_zeros(shape))


def attend(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Causal attention of all positions to themselves and earlier ones, `[B, T, A·d]` from `[B, A, T, d]`."""
    attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    return attended.transpose(1, 2).flatten(2)


def attend_step(query: Tensor, key: Tensor, value: Tensor, position: int, state: AttentionState) -> Tensor:
    """The same for one position, `[B, A·d]` from `[B, A, d]`; its key and value are written into the cache."""
    state.keys[:, :, position] = key
    state.values[:, :, position] = value
    seen = slice(position + 1)
    return functional.scaled_dot_product_attention(
        query.unsqueeze(2), state.keys[:, :, seen], state.values[:, :, seen]
    ).flatten(1)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """`[B, T, A·d]` to `[B, A, T, d]`, and `[B, A·d]` to `[B, A, d]`."""
    split = tokens.unflatten(-1, (heads, -1))
    return split.transpose(1, 2) if tokens.dim() == 3 else split
