"""Some rows of a source, spread over all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvq.data import Subset, TensorImages, ordered_batches, spread_rows
from hvq.errors import DataError


@given(length=st.integers(0, 500), most=st.integers(0, 60))
def test_rows_are_distinct_ascending_and_one_of_each_stretch(length: int, most: int) -> None:
    rows = spread_rows(length, most)
    assert len(rows) == min(length, most)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    stretches = np.arange(len(rows))
    assert (rows >= stretches * length // max(1, len(rows))).all()
    assert (rows < (stretches + 1) * length // max(1, len(rows))).all()
    assert (rows == spread_rows(length, most)).all()


@pytest.mark.parametrize("labels", [np.arange(10_000) // 1000, np.arange(10_000) % 10])
def test_classes_are_found_whether_they_are_sorted_or_in_turn(labels: np.ndarray) -> None:
    counts = np.bincount(labels[spread_rows(10_000, 1000)], minlength=10)
    assert counts.min() > 60


def test_a_subset_is_read_like_a_source() -> None:
    images = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 1, 4, 4)
    subset = Subset(TensorImages(images), np.array([2, 3, 7, 10]))
    batches = list(ordered_batches(subset, chunk_size=3))
    assert [batch.indices.tolist() for batch in batches] == [[2, 3, 7], [10]]
    assert torch.equal(torch.cat([batch.images for batch in batches]), images[[2, 3, 7, 10]])
    with pytest.raises(DataError, match="image indices go from 0 to 10; received 11"):
        Subset(TensorImages(images), np.array([11])).fetch(np.array([0]))
