"""A training goes on from a checkpoint of the same settings, whether or not they were written in full."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from hvq.config import PriorStageConfig, RunConfig
from hvq.training.settings import comparable, first_difference
from tests.runs import changed, tiny_config

PARTS = ("seed", "data", "autoencoder", "autoencoder_training")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_config(tmp_path)


def _without(settings: dict[str, Any], path: str) -> dict[str, Any]:
    """What was written before a field existed."""
    *above, last = path.split(".")
    before = copy.deepcopy(settings)
    del reduce(lambda value, name: value[name], above, before)[last]
    return before


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    # As a checkpoint does it: what it holds was comparable when it was written.
    return first_difference(comparable(comparable(saved)), comparable(wanted))


FIELDS = [
    ("data.limit", 7, "None"),
    ("data.labelled", False, "True"),
    ("data.augmentation.flip", True, "False"),
    ("autoencoder.levels.top.quantizer", {"kind": "sim"}, r"vector"),
    ("autoencoder_training.average_decay", 0.5, "0.0"),
]


@pytest.mark.parametrize(("path", "other", "default"), FIELDS)
def test_a_field_that_came_later_has_its_default(config: RunConfig, path: str, other: Any, default: str) -> None:
    with_default = config.parts(*PARTS)
    before = _without(with_default, path)
    assert before != with_default
    assert _difference(before, with_default) is None
    with_other = changed(config, **{path.replace(".", "__"): other}).parts(*PARTS)
    assert path in str(_difference(before, with_other))
    assert path in str(_difference(with_other, with_default))
    assert default in str(_difference(before, with_other))


def test_a_field_of_a_prior_that_came_later_has_its_default() -> None:
    stage = PriorStageConfig().model_dump(mode="json")
    before = _without({"prior": stage}, "prior.training.label_dropout")
    assert _difference(before, {"prior": stage}) is None
    stage["training"]["label_dropout"] = 0.3
    assert _difference(before, {"prior": stage}) == "prior.training.label_dropout is 0.3, and was 0.1"


def test_what_this_version_cannot_read_differs(config: RunConfig) -> None:
    wanted = config.parts(*PARTS)
    removed = {**wanted, "data": {**wanted["data"], "colour": "sepia"}}
    assert _difference(removed, wanted) == "data.colour is None, and was sepia"
    assert _difference(_without(wanted, "data.path"), wanted) == f"data.path is {config.data.path}, and was None"  # type: ignore[union-attr]
    assert _difference({}, wanted) == "seed is 3, and was None"
