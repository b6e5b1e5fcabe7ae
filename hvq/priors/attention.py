"""Attention to earlier positions, of all positions at once or of one against a cache.

Letters: B batch, A heads, T positions, W window, d channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hvq.priors import step_kernels
from hvq.priors.step_product import normalized


@dataclass(frozen=True)
class AttentionCache:
    """Keys and values `[B, key heads, T, d]`, filled position by position; behind the last, the oldest give way."""

    keys: Tensor
    values: Tensor


def make_attention_cache(like: Tensor, batch: int, key_heads: int, length: int, width: int) -> AttentionCache:
    """An empty cache of `length` positions and `key_heads` heads of `width` channels, of the type of `like`."""
    shape = (batch, key_heads, length, width)
    library = step_kernels.library() if step_kernels.is_native(like) else None
    if library is None:
        return AttentionCache(like.new_zeros(shape), like.new_zeros(shape))
    return AttentionCache(step_kernels.empty(library, shape).zero_(), step_kernels.empty(library, shape).zero_())


@dataclass(frozen=True)
class Turning:
    """What is done to queries and keys before they meet: a norm of each head, then a rotation by the position.

    Attributes:
        query_scale: `[d]`, of normalised queries.
        key_scale: `[d]`, of normalised keys.
        cosines: `[T, d / 2]` of the angles by which pairs (i, i + d / 2) of channels are turned.
        sines: the same.
        epsilon: of the norm.
    """

    query_scale: Tensor
    key_scale: Tensor
    cosines: Tensor
    sines: Tensor
    epsilon: float = 1e-6

    def angles(self, position: int | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions, or `[d / 2]` of one."""
        if position is None:
            return self.cosines, self.sines
        return self.cosines.select(0, position), self.sines.select(0, position)

    def turned(self, heads: Tensor, scale: Tensor, position: int | None = None) -> Tensor:
        """`[B, A, T, d]`, or `[B, A, d]` of one position."""
        heads = normalized(heads, scale, self.epsilon)
        cosine, sine = self.angles(position)
        first, second = heads.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def attend_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: int,
    cache: AttentionCache,
    *,
    heads: int,
    turning: Turning | None = None,
    to_self: bool = True,
) -> Tensor:
    """Attention of one position, `[B, A·d]`; its key and value are written into the cache.

    Args:
        query: `[B, A·d]`.
        key: `[B, key heads · d]`.
        value: the same.
        position: 0 upwards.
        cache: of the positions before.
        heads: A.
        turning: of queries and keys.
        to_self: whether a position attends to itself; if not, the first one attends to nothing and gets zeros.
    """
    length = cache.values.shape[2]
    slot, seen = position % length, min(position + to_self, length)
    library = step_kernels.library() if step_kernels.is_native(query) else None
    if library is not None:
        return step_kernels.attend(
            library,
            query,
            key,
            value,
            heads=heads,
            keys=cache.keys,
            values=cache.values,
            slot=slot,
            seen=seen,
            scales=None if turning is None else (turning.query_scale, turning.key_scale),
            epsilon=0.0 if turning is None else turning.epsilon,
            turns=None if turning is None else turning.angles(position),
        )
    width = cache.values.shape[3]
    query, key = query.unflatten(1, (-1, width)), key.unflatten(1, (-1, width))
    if turning is not None:
        query = turning.turned(query, turning.query_scale, position)
        key = turning.turned(key, turning.key_scale, position)
    cache.keys.select(2, slot).copy_(key)
    cache.values.select(2, slot).copy_(value.unflatten(1, (-1, width)))
    if seen == 0:
        return torch.zeros_like(query).flatten(1)
    group = heads // cache.values.shape[1]
    # Queries of heads that share a key stand one below the other, as if they were positions.
    grouped = query.unflatten(1, (-1, group))
    return functional.scaled_dot_product_attention(grouped, cache.keys[:, :, :seen], cache.values[:, :, :seen]).flatten(
        1
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | None = None,
    to_self: bool = True,
) -> Tensor:
    """Causal attention of all positions, `[B, T, A·d]`.

    There is no drop-out of its weights: with it, all of them would have to be held, a T x T matrix for each head.

    Args:
        query: `[B, A, T, d]`.
        key: `[B, key heads, T, d]`; each key head serves as many heads, in order.
        value: the same.
        window: W, positions that one attends to, itself and those before it; None for all.
        to_self: whether a position attends to itself; if not, the first one attends to nothing and gets zeros.
    """
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    if not to_self:
        attended = _attend_strictly(query, key, value)
    elif window is not None and window < query.shape[2]:
        attended = _attend_locally(query, key, value, window)
    else:
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attended.transpose(1, 2).flatten(2)


def _attend_strictly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Without the first query and the last key, a position attends up to the one before it."""
    if query.shape[2] == 1:
        return torch.zeros_like(query)
    later = functional.scaled_dot_product_attention(query[:, :, 1:], key[:, :, :-1], value[:, :, :-1], is_causal=True)
    return functional.pad(later, (0, 0, 1, 0))


def _attend_locally(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """In blocks of W positions, each of which meets itself and the block before: memory grows as T·W, not as T·T."""
    batch, length = query.shape[0], query.shape[2]
    blocks = -(-length // window)
    query, key, value = (
        functional.pad(tensor, (0, 0, 0, blocks * window - length)).unflatten(2, (blocks, window)).transpose(1, 2)
        for tensor in (query, key, value)
    )
    attended = functional.scaled_dot_product_attention(
        query.flatten(0, 1),
        _with_block_before(key),
        _with_block_before(value),
        attn_mask=_near(blocks, window, query.device).repeat(batch, 1, 1, 1),
    )
    return attended.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _with_block_before(tokens: Tensor) -> Tensor:
    """`[B·blocks, A, 2·W, d]` of `[B, blocks, A, W, d]`: each block behind the one before, the first behind zeros."""
    before = functional.pad(tokens, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
    return torch.cat([before, tokens], dim=3).flatten(0, 1)


def _near(blocks: int, window: int, device: torch.device) -> Tensor:
    """bool `[blocks, 1, W, 2·W]`: which positions of its own block and the one before each may see."""
    own = torch.arange(window, device=device)[:, None]
    other = torch.arange(2 * window, device=device) - window
    near = (other <= own) & (other > own - window)
    return torch.stack([near & (other >= 0), *[near] * (blocks - 1)]).unsqueeze(1)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """`[B, T, A·d]` to `[B, A, T, d]`."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
