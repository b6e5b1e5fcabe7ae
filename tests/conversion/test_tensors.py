"""What state dicts are wrapped in comes off, and what holds none is refused with the way out."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import nn

from hvq.conversion import unwrap
from hvq.conversion.tensors import Rule, fill, require_names
from hvq.errors import CheckpointError

TENSORS = {"a.weight": torch.ones(2), "b": torch.zeros(3)}


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_come_off(wrapper: str, prefix: str) -> None:
    inner = {f"{prefix}{name}": tensor for name, tensor in TENSORS.items()}
    found = unwrap({wrapper: inner, "optimizer": {"state": {}}, "epoch": 7, "args": Namespace(dropout=0.2)})
    assert found.tensors == TENSORS
    assert found.arguments == {"dropout": 0.2}
    assert unwrap(inner).tensors == TENSORS
    assert unwrap(inner).arguments == {}


def test_a_prefix_of_some_names_stays() -> None:
    mixed = {"module.weight": torch.ones(2), "other": torch.ones(3)}
    assert unwrap(mixed).tensors == mixed


def test_what_holds_no_tensors_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"it is a list: save the model's state_dict\(\)"):
        unwrap([torch.zeros(2)])
    with pytest.raises(CheckpointError, match=r"must hold tensors.*it holds epoch, loss"):
        unwrap({"epoch": 3, "loss": 0.5})
    with pytest.raises(CheckpointError, match="it holds nothing"):
        unwrap({})


def test_the_first_names_that_do_not_fit() -> None:
    with pytest.raises(CheckpointError, match=r"lacks c, d, e and 1 more; the file holds a part"):
        require_names(TENSORS, ["a.weight", "b", "c", "d", "e", "f"], "kind")
    with pytest.raises(CheckpointError, match=r"has the unknown b; parts were added"):
        require_names(TENSORS, ["a.weight"], "kind")
    require_names(TENSORS, ["b", "a.weight"], "kind")


def test_fill_takes_what_rules_name_alone() -> None:
    model = nn.Linear(2, 3)
    bias = model.bias.detach().clone()
    fill(model, [Rule("weight", ("b", "a.weight"), torch.outer)], TENSORS, "kind")
    assert torch.equal(model.weight, torch.zeros(3, 2))
    assert torch.equal(model.bias, bias)
    with pytest.raises(CheckpointError, match=r"a\.weight of shape \[2\].* become the \[3\]"):
        fill(model, [Rule("bias", ("a.weight",))], TENSORS, "kind")
    with pytest.raises(CheckpointError, match=r"a\.weight of shape \[2\], b of shape \[3\]"):
        fill(model, [Rule("bias", ("a.weight", "b"), torch.add)], TENSORS, "kind")
