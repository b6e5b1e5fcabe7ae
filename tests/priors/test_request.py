"""What is asked of a hierarchy is checked as a whole, before the first code is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import DataError, HVQError
from hvq.priors import Prior, SamplingOptions
from hvq.priors.request import Request, code_shape
from tests.priors.small import GRIDS, LEVELS, codes_of, small_prior

PRIORS: dict[str, Prior] = {level: small_prior(level) for level in LEVELS}


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "priors": PRIORS,
        "grids": GRIDS,
        "numbers": torch.arange(3),
        "labels": torch.tensor([0, -1, 2]),
        "options": {},
        "given": {},
        "fixed": {},
    }
    return Request(**{**fields, **changes})


def known(*names: str) -> dict[str, Tensor]:
    return {name: codes_of(name, 3) for name in names}


@given(order=st.permutations(LEVELS), with_priors=st.sets(st.sampled_from(LEVELS)))
def test_levels_go_coarse_to_fine_whatever_the_order_and_whoever_has_a_prior(
    order: list[str], with_priors: set[str]
) -> None:
    priors = {name: PRIORS[name] for name in order if name in with_priors}
    given_names = [name for name in reversed(order) if name not in with_priors]
    found = request(priors=priors, given=known(*given_names))
    # Levels that are finer than all priors are told apart by the order of the grids.
    assert list(GRIDS) == list(LEVELS) == list(found.level_names)
    found.check()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"labels": torch.tensor([0])}, "each sample takes one label, -1 for none; received 3 samples and 1 labels"),
        ({"labels": torch.tensor([0, 3, 1])}, r"labels must be classes of this prior \(0 \.\. 2\), or -1; received 0"),
        ({"labels": torch.tensor([0, -2, 1])}, r"received -2 \.\. 1"),
        ({"options": {"botom": SamplingOptions()}}, "options name botom; the levels are top, middle, bottom"),
        ({"grids": {"top": (2, 3)}}, "missing middle, bottom"),
        ({"grids": {**GRIDS, "extra": (2, 3)}}, "unknown extra"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(HVQError, match=fault):
        request(**changes).check()


def test_labels_matter_for_levels_that_are_drawn_alone() -> None:
    without = {"top": small_prior(num_classes=0)}
    grids, labels = {"top": GRIDS["top"]}, torch.tensor([0, 0, 0])
    with pytest.raises(DataError, match="none, for it was trained without"):
        request(priors=without, grids=grids, labels=labels).check()
    request(priors=without, grids=grids, labels=labels, given=known("top")).check()


def test_nothing_is_asked_of_no_samples() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    request(numbers=none, labels=none).check()


def test_shapes_of_codes() -> None:
    assert code_shape(PRIORS["bottom"], (4, 6)) == (4, 6)
    assert code_shape(small_prior(codes_per_position=3), (2, 3)) == (2, 3, 3)
