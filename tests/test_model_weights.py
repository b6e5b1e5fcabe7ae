"""Weights that do not fit are named, with the likely cause; those that do come in without loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hvq.errors import CheckpointError
from hvq.model_weights import likely_cause, load_state, load_widened
from hvq.priors import PixelCNNPrior
from hvq.quantizers import SimQuantizer, VectorQuantizer
from tests.autoencoders.small import small_model

WHERE = Path("folder")


def _prior(**changes: object) -> nn.Module:
    return PixelCNNPrior(**{"codebook_size": 7, "coarser": {"top": 5}, "width": 4, "layers": 1, **changes})


def _named(change: Callable[[str], str]) -> Callable[[nn.Module], dict[str, Tensor]]:
    return lambda model: {change(name): tensor for name, tensor in model.state_dict().items()}


CAUSES: dict[str, tuple[nn.Module, Mapping[str, Tensor], str]] = {
    "code dimension": (
        VectorQuantizer(codebook_size=7, code_dimension=3),
        VectorQuantizer(codebook_size=7, code_dimension=5).state_dict(),
        r"has head_codebooks.0.vectors of shape \[7, 5\], .* \[7, 3\]; .* of code dimension 5, and .* says 3$",
    ),
    "codebook size": (
        SimQuantizer(codebook_size=7, code_dimension=3),
        SimQuantizer(codebook_size=11, code_dimension=3).state_dict(),
        r"has fixed_vectors of shape \[11, 3\], .*; the weights are of codebook size 11, and the configuration says 7$",
    ),
    "codebook size of a prior": (
        _prior(),
        _prior(codebook_size=11).state_dict(),
        "of codebook size 11, and .* says 7$",
    ),
    "a prior for a finer level": (
        _prior(coarser={}),
        _prior().state_dict(),
        "has the unknown tensor condition.embeddings.top.* conditioned on top, and the configuration's level on none$",
    ),
    "a prior for a coarser level": (
        _prior(coarser={"top": 5, "middle": 3}),
        _prior().state_dict(),
        "lacks the tensor condition.embeddings.middle.* conditioned on top, and .* level on middle, top$",
    ),
    "other levels": (
        small_model((2, 2)),
        small_model((2, 2), names=("coarse", "fine")).state_dict(),
        "lacks the tensor levels.bottom.* of an autoencoder of levels coarse, fine, and .* of bottom, top$",
    ),
    "another kind of model": (_prior(), small_model((2,)).state_dict(), "the weights are of another kind of model$"),
    "wrapped for several processes": (
        _prior(),
        _named("module.{}".format)(_prior()),
        "names hold module., which is of D",
    ),
    "compiled": (_prior(), _named("_orig_mod.{}".format)(_prior()), "of torch.compile: save the module inside$"),
    "something else": (
        _prior(),
        {**_prior().state_dict(), "output.bias": torch.zeros(5)},
        r"has output.bias of shape \[5\], where the model has \[4\]; weights and configuration do not belong together$",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named(name: str) -> None:
    model, tensors, sentence = CAUSES[name]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=sentence) as raised:
        load_state(model, tensors, WHERE, "model")
    assert str(raised.value).startswith("model at folder ")
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_numbers_of_axes_may_differ() -> None:
    assert "do not belong together" in likely_cause({"a.vectors": (7, 3)}, {"a.vectors": (7,)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_precision_comes_in_without_loss(dtype: torch.dtype) -> None:
    saved = nn.Linear(3, 5).to(dtype)
    model = nn.Linear(3, 5)
    load_widened(model, saved.state_dict(), WHERE, "layer")
    assert model.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(model.weight.double(), saved.weight.double())
