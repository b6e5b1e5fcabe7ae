"""Attention over all positions and step by step against sums written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.priors.attention import AttentionCache, Turning, attend, attend_step, make_attention_cache
from hvq.priors.positions import grid_turns
from tests.priors.backends import every_backend, step_backend


def by_hand(query: Tensor, key: Tensor, value: Tensor, window: int, to_self: bool) -> Tensor:
    """`[B, T, A·d]`, position by position."""
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    out = torch.zeros_like(query)
    for head in range(query.shape[1]):
        keys, values = key[:, head // group], value[:, head // group]
        for t in range(length):
            seen = slice(max(0, t + 1 - window), t + to_self)
            if seen.start < seen.stop:
                scores = (keys[:, seen] @ query[:, head, t, :, None])[..., 0] / math.sqrt(query.shape[3])
                out[:, head, t] = (scores.softmax(dim=1)[:, None] @ values[:, seen])[:, 0]
    return out.transpose(1, 2).flatten(2)


def random_heads(batch: int, heads: int, length: int, width: int) -> Tensor:
    return torch.randn(batch, heads, length, width, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    length=st.integers(1, 23),
    window=st.sampled_from([None, 1, 2, 5, 7, 23, 29]),
    to_self=st.booleans(),
    seed=st.integers(0, 99),
)
def test_all_positions_at_once_are_what_is_summed_by_hand(
    batch: int, heads: tuple[int, int], length: int, window: int | None, to_self: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    window = window if to_self else None
    query = random_heads(batch, heads[0], length, 5)
    key, value = random_heads(batch, heads[1], length, 5), random_heads(batch, heads[1], length, 5)
    expected = by_hand(query, key, value, window or length, to_self)
    assert torch.allclose(attend(query, key, value, window=window, to_self=to_self), expected, atol=1e-12)


def steps(
    query: Tensor, key: Tensor, value: Tensor, cache: AttentionCache, turning: Turning | None, to_self: bool
) -> Tensor:
    """`[B, T, A·d]`, from rows that lie apart, as slices of one product do."""
    rows = [torch.cat([part[:, :, t].flatten(1) for part in (query, key, value)], dim=1) for t in range(query.shape[2])]
    widths = [part.shape[1] * part.shape[3] for part in (query, key, value)]
    attended = [
        attend_step(*row.split(widths, dim=1), t, cache, heads=query.shape[1], turning=turning, to_self=to_self)
        for t, row in enumerate(rows)
    ]
    return torch.stack(attended, dim=1)


@every_backend
@settings(max_examples=30, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    width=st.sampled_from([2, 6, 16, 22, 34, 64, 70]),
    length=st.integers(1, 37),
    window=st.sampled_from([None, 1, 5, 17]),
    turned=st.booleans(),
    to_self=st.booleans(),
    seed=st.integers(0, 99),
)
def test_steps_are_what_is_computed_of_all_positions_at_once(
    backend: str,
    heads: tuple[int, int],
    width: int,
    length: int,
    window: int | None,
    turned: bool,
    to_self: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    window = window if to_self else None
    query = random_heads(2, heads[0], length, width).float()
    key, value = random_heads(2, heads[1], length, width).float(), random_heads(2, heads[1], length, width).float()
    turning, at_once = None, (query.double(), key.double())
    if turned:
        scales = torch.rand(width) + 0.5, torch.rand(width) + 0.5
        turning = Turning(*scales, *grid_turns((1, length), width, query))
        exact = Turning(*(s.double() for s in scales), *grid_turns((1, length), width, query.double()))
        at_once = exact.turned(query.double(), exact.query_scale), exact.turned(key.double(), exact.key_scale)
    expected = attend(*at_once, value.double(), window=window, to_self=to_self)
    cache = make_attention_cache(query, 2, heads[1], min(length, window or length), width)
    with step_backend(backend):
        found = steps(query, key, value, cache, turning, to_self)
    assert float((found - expected).abs().max()) <= 1e-5


def test_scores_of_any_size_leave_finite_weights() -> None:
    query = 1e4 * torch.randn(1, 1, 29, 16)
    cache = make_attention_cache(query, 1, 1, 29, 16)
    found = steps(query, query, query, cache, None, True)
    assert torch.isfinite(found).all()
    assert torch.allclose(found, attend(query, query, query), rtol=1e-4)


def test_positions_turn_by_their_distance_alone() -> None:
    width = 12
    turning = Turning(
        torch.ones(width), torch.ones(width), *grid_turns((5, 7), width, torch.zeros((), dtype=torch.float64))
    )
    query, key = (
        random_heads(1, 1, 1, width).expand(1, 1, 35, width),
        random_heads(1, 1, 1, width).expand(1, 1, 35, width),
    )
    scores = (turning.turned(query, turning.query_scale) @ turning.turned(key, turning.key_scale).mT)[0, 0].view(
        5, 7, 5, 7
    )
    assert torch.allclose(scores[0, 1, 1, 4], scores[3, 2, 4, 5]), "one row down, three columns to the right"
    assert not torch.allclose(scores[0, 1, 1, 4], scores[0, 1, 2, 4])


@pytest.mark.parametrize("window", [3, 64])
def test_local_attention_holds_no_square_matrix(window: int) -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            sizes = [
                value.numel() for value in (out if isinstance(out, tuple) else (out,)) if isinstance(value, Tensor)
            ]
            largest = max([largest, *sizes])
            return out

    query = torch.randn(1, 1, 1024, 2)
    with Watch():
        attend(query, query, query, window=window)
    assert largest <= 1024 * max(2 * window, 4) * 2
