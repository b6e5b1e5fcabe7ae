"""The converted PixelSNAIL computes what the original's formulae say, all at once and step by step."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from torch import Tensor

from hvq.conversion import ForeignCheckpoint, convert_rosinality_prior, unwrap
from hvq.errors import CheckpointError
from hvq.priors import Condition
from tests.conversion.states import CODES, double, pixelsnail_logits, pixelsnail_state

GRIDS = {"top": (3, 5), "bottom": (6, 10)}


def _codes(level: str, batch: int = 2) -> Tensor:
    return torch.randint(CODES, (batch, *GRIDS[level]), generator=torch.Generator().manual_seed(len(level)))


def _condition(level: str) -> Condition:
    return Condition(codes={"top": _codes("top")} if level == "bottom" else {})


def _checkpoint(level: str) -> ForeignCheckpoint:
    return ForeignCheckpoint(pixelsnail_state(GRIDS[level], conditioned=level == "bottom"), {})


@pytest.mark.parametrize("level", GRIDS)
def test_logits_equal_the_originals(level: str) -> None:
    checkpoint, codes = _checkpoint(level), _codes(level)
    converted = convert_rosinality_prior(checkpoint)
    top = _codes("top") if level == "bottom" else None
    expected = pixelsnail_logits(double(checkpoint.tensors), codes, top)
    assert expected.std(dim=-1).mean() > 0.3
    with torch.no_grad():
        found = converted.model(codes, _condition(level))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert (converted.level, converted.grid, converted.codebook_size) == (level, GRIDS[level], CODES)
    assert converted.coarser == ({"top": CODES} if level == "bottom" else {})


@pytest.mark.parametrize("level", GRIDS)
def test_steps_equal_the_whole(level: str) -> None:
    checkpoint, codes = _checkpoint(level), _codes(level)
    model = convert_rosinality_prior(checkpoint).model
    top = _codes("top") if level == "bottom" else None
    expected = pixelsnail_logits(double(checkpoint.tensors), codes, top).flatten(1, 2)
    cache, previous = model.make_cache(_condition(level), len(codes), GRIDS[level]), None
    for t, code in enumerate(codes.flatten(1).unbind(dim=1)):
        logits, cache = model.step(previous, cache)
        torch.testing.assert_close(logits.double(), expected[:, t], rtol=0, atol=1e-4)
        previous = code


def test_what_a_forward_of_the_original_sets_to_zero_counts_nowhere() -> None:
    checkpoint, codes = _checkpoint("top"), _codes("top")
    before = convert_rosinality_prior(checkpoint).model(codes, Condition())
    # An optimizer step leaves something there, and the file is written after it.
    checkpoint.tensors["blocks.0.resblocks.0.conv1.conv.conv.weight_v"][:, :, -1, 2:] = 17.0
    after = convert_rosinality_prior(checkpoint).model(codes, Condition())
    assert torch.equal(before, after)


def test_dropout_comes_from_the_arguments() -> None:
    tensors = pixelsnail_state(GRIDS["top"], conditioned=False)
    content = {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}, "args": Namespace(dropout=0.3)}
    assert convert_rosinality_prior(unwrap(content)).config.dropout == 0.3
    assert convert_rosinality_prior(unwrap(tensors)).config.dropout == 0.1


def test_what_does_not_fit_is_named() -> None:
    tensors = _checkpoint("bottom").tensors
    del tensors["blocks.1.out.conv.weight_g"]
    with pytest.raises(CheckpointError, match=r"rosinality-pixelsnail: it lacks blocks\.1\.out\.conv\.weight_g;"):
        convert_rosinality_prior(ForeignCheckpoint(tensors, {}))
    tensors = _checkpoint("top").tensors
    tensors["background"] = tensors["background"][0]
    with pytest.raises(CheckpointError, match="background with 4 axes"):
        convert_rosinality_prior(ForeignCheckpoint(tensors, {}))
