"""Parts of an evaluation joined, and networks that all processes have or none."""

from __future__ import annotations

import pytest
import torch

from hvq.distributed import Reduction, current_reduction
from hvq.evaluation.measured import Measured, loaded_everywhere
from hvq.evaluation.pretrained import WeightsMissing
from tests.processes import run_in_processes


def _missing() -> str:
    raise WeightsMissing("its weights are not here")


def test_parts_are_joined_group_by_group() -> None:
    one = Measured({"a": {"x": 1}, "b": {"y": 2}}, {"a.x": "one"})
    other = Measured({"a": {"z": None}, "c": {"w": 3}}, {"c": "three"})
    joined = one.joined(other)
    assert joined.numbers == {"a": {"x": 1, "z": None}, "b": {"y": 2}, "c": {"w": 3}}
    assert joined.about == {"a.x": "one", "c": "three"}
    assert one.numbers == {"a": {"x": 1}, "b": {"y": 2}}


def test_a_network_is_there_or_the_reason_is() -> None:
    assert loaded_everywhere(lambda: "network", Reduction(), torch.device("cpu")) == ("network", "")
    assert loaded_everywhere(_missing, Reduction(), torch.device("cpu")) == (None, "its weights are not here")


def _loaded_on_one_of_two_processes() -> tuple[str | None, str]:
    reduction = current_reduction()
    return loaded_everywhere(_missing if reduction.rank else lambda: "network", reduction, torch.device("cpu"))


@pytest.mark.processes
def test_what_one_process_lacks_all_go_without() -> None:
    first, second = run_in_processes(_loaded_on_one_of_two_processes, 2)
    assert first == (None, "it is not on the machines of all processes")
    assert second == (None, "its weights are not here")
