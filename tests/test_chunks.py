"""Forwards have one fixed size, and rows come out as they went in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvq.chunks import map_chunks, padded_rows


@given(rows=st.integers(1, 23), chunk_size=st.integers(1, 11))
def test_every_call_has_the_same_size_and_every_row_comes_out_once(rows: int, chunk_size: int) -> None:
    inputs = {"x": torch.randn(rows, 3), "y": torch.arange(rows)}
    sizes: list[list[int]] = []

    def function(part: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes.append([len(tensor) for tensor in part.values()])
        return {"sum": part["x"].sum(dim=1) + part["y"], "twice": 2 * part["y"]}

    results = list(map_chunks(function, inputs, chunk_size))
    assert sizes == [[chunk_size, chunk_size]] * -(-rows // chunk_size)
    assert torch.equal(torch.cat([part["sum"] for part in results]), inputs["x"].sum(dim=1) + inputs["y"])
    assert torch.equal(torch.cat([part["twice"] for part in results]), 2 * inputs["y"])


def test_no_rows_make_no_calls() -> None:
    assert list(map_chunks(lambda part: pytest.fail("called"), {"x": torch.zeros(0, 3)}, 5)) == []


@pytest.mark.parametrize("length", [3, 5, 7])
def test_rows_are_filled_up_with_the_last_one(length: int) -> None:
    rows = torch.randn(5, 2)
    filled = padded_rows(rows, length)
    assert len(filled) == max(5, length)
    assert torch.equal(filled[:5], rows)
    assert all(torch.equal(row, rows[-1]) for row in filled[5:])


def test_an_image_is_encoded_alike_whatever_it_is_encoded_with() -> None:
    """What the fixed size is for: a matrix product may round differently for another number of rows."""
    weight, images = torch.randn(97, 53), torch.randn(13, 97)

    def encode(part: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": part["x"] @ weight}

    whole = torch.cat([part["y"] for part in map_chunks(encode, {"x": images}, 5)])
    for count in (1, 2, 5, 11):
        some = torch.cat([part["y"] for part in map_chunks(encode, {"x": images[:count]}, 5)])
        assert torch.equal(some, whole[:count])
