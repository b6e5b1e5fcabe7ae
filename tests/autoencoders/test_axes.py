"""Autoencoders of signals and volumes: what those of images do, along one axis and three."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    convolutional_autoencoder,
    initialize_codebooks,
    weights_channels_last,
)
from hvq.errors import ConfigurationError, DataError
from hvq.quantizers import CodebookStep
from tests.autoencoders.small import small_model

# Primes, so that every axis is padded, and by another number.
SIZES = {1: (43,), 3: (7, 11, 13)}
RATIOS = (2, 3)
axes = pytest.mark.parametrize("spatial_dims", SIZES)
any_build = pytest.mark.parametrize(
    ("sees", "blocks"), [("context", "residual"), ("vectors", "rezero"), ("vectors_throughout", "residual")]
)


def samples(spatial_dims: int, batch: int = 2, kind: torch.dtype = torch.float32) -> Tensor:
    """Random numbers `[B, 2, *size]` in [-1, 1]."""
    return torch.rand(batch, 2, *SIZES[spatial_dims], dtype=kind) * 2 - 1


def covered(spatial_dims: int, stride: int) -> list[int]:
    return [math.ceil(length / stride) for length in SIZES[spatial_dims]]


@axes
@any_build
@torch.no_grad()
def test_codes_lie_on_grids_of_as_many_axes_and_give_the_reconstruction_again(
    spatial_dims: int, sees: str, blocks: str
) -> None:
    model = small_model(RATIOS, sees=sees, blocks=blocks, spatial_dims=spatial_dims).eval()
    given = samples(spatial_dims)
    result = model(given)
    top = covered(spatial_dims, 6)
    assert result.codes["top"].shape == (2, *top)
    assert result.codes["bottom"].shape == (2, *(2 * n for n in top))
    assert result.reconstruction.shape == given.shape
    assert torch.equal(model.decode(model.encode(given), size=given.shape[2:]), result.reconstruction)
    assert torch.equal(model.decode(result.codes)[(..., *map(slice, given.shape[2:]))], result.reconstruction)


@axes
@torch.no_grad()
def test_samples_are_padded_by_reflection_and_cropped_back(spatial_dims: int) -> None:
    model = small_model(RATIOS, spatial_dims=spatial_dims).double().eval()
    given = samples(spatial_dims, kind=torch.float64)
    whole = given
    for axis, length in enumerate(given.shape[2:], start=2):
        missing = -length % 6
        assert missing
        mirrored = whole.flip(axis).narrow(axis, 1, missing)
        whole = torch.cat([whole, mirrored], dim=axis)
    expected = model(whole)
    found = model(given)
    assert all(torch.equal(found.codes[name], codes) for name, codes in expected.codes.items())
    cut = expected.reconstruction[(..., *map(slice, given.shape[2:]))]
    assert torch.allclose(found.reconstruction, cut, atol=1e-12)


@axes
def test_padding_is_in_no_statistics(spatial_dims: int) -> None:
    model = small_model(RATIOS, spatial_dims=spatial_dims).train()
    for name, result in model(samples(spatial_dims)).levels.items():
        places = math.prod(covered(spatial_dims, model.strides[name]))
        assert [int(statistics.counts.sum()) for statistics in result.statistics] == [2 * places]


@axes
@any_build
@torch.no_grad()
def test_a_level_can_be_left_out(spatial_dims: int, sees: str, blocks: str) -> None:
    model = small_model(RATIOS, sees=sees, blocks=blocks, level_dropout=0.3, spatial_dims=spatial_dims).eval()
    given = samples(spatial_dims)
    result, size = model(given, prefixes=True), given.shape[2:]
    alone = model.decode(result.codes, size=size, absent=["bottom"])
    assert not torch.allclose(alone, result.reconstruction, atol=1e-3)
    assert torch.allclose(result.prefixes["top"], alone, atol=1e-5)
    mixed = model(given, torch.tensor([1, 2])).reconstruction
    assert torch.allclose(mixed, torch.stack([alone[0], result.reconstruction[1]]), atol=1e-5)


@axes
def test_a_step_of_training_moves_every_part(spatial_dims: int) -> None:
    model = weights_channels_last(small_model(RATIOS, level_dropout=0.3, spatial_dims=spatial_dims))
    initialize_codebooks(model, [samples(spatial_dims, 11)])
    optimizer, codebooks = torch.optim.SGD(model.parameters(), lr=0.1), CodebookStep(model.quantizers)
    given = samples(spatial_dims, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = model(given, torch.tensor([1, 2, 2]))
    AutoencoderLoss()(result, given)[0].backward()
    codebooks.add(result.levels)
    optimizer.step()
    codebooks.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name, _ in model.named_parameters()} <= moved
    assert any("quantizer" in name for name in moved)


@axes
def test_layout_of_weights_changes_no_number(spatial_dims: int) -> None:
    model, given = small_model(RATIOS, spatial_dims=spatial_dims).eval(), samples(spatial_dims)
    plain = model(given).reconstruction
    assert torch.allclose(weights_channels_last(model)(given).reconstruction, plain, atol=1e-5)


@axes
@torch.no_grad()
def test_a_folder_gives_the_same_again(tmp_path: Path, spatial_dims: int) -> None:
    model, given = small_model(RATIOS, spatial_dims=spatial_dims).eval(), samples(spatial_dims)
    model.save_pretrained(tmp_path / "model", image_size=SIZES[spatial_dims])
    loaded = Autoencoder.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(given).reconstruction, model(given).reconstruction)
    assert loaded.description is not None
    assert loaded.description.image_size == SIZES[spatial_dims]
    sides = ", ".join(["24"] * spatial_dims)
    assert f"torch.rand(1, 2, {sides})" in (tmp_path / "model" / "README.md").read_text()


def test_a_folder_says_a_size_of_as_many_axes(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="one length for each of the 1 axes"):
        small_model(RATIOS, spatial_dims=1).save_pretrained(tmp_path / "model", image_size=(32, 32))


@axes
def test_samples_smaller_than_the_stride_are_refused(spatial_dims: int) -> None:
    model = small_model(RATIOS, spatial_dims=spatial_dims)
    with pytest.raises(DataError, match="smaller than the coarsest stride 6"):
        model(torch.zeros(1, 2, *[5] * spatial_dims))


@torch.no_grad()
def test_kernels_of_one_axis_are_those_of_two_that_see_one_row_alone() -> None:
    levels = {"top": {"ratio": 3, "width": 7, "residual_blocks": 1, "codebook_size": 11, "code_dimension": 5}}
    signal, image = (
        convolutional_autoencoder(channels=2, levels=levels, decoder={"width": 6, "residual_blocks": 1}, spatial_dims=n)
        .double()
        .eval()
        for n in (1, 2)
    )
    wide = image.state_dict()
    for name, tensor in signal.state_dict().items():
        if tensor.dim() == 3:
            widened = torch.zeros_like(wide[name])
            widened[:, :, widened.shape[2] // 2] = tensor
            tensor = widened
        wide[name] = tensor
    image.load_state_dict(wide)
    given = torch.rand(2, 2, 33, dtype=torch.float64) * 2 - 1
    features = signal.levels["top"].encoder(given)  # type: ignore[operator, union-attr]
    rows = image.levels["top"].encoder(given.unsqueeze(2).expand(-1, -1, 33, -1))  # type: ignore[operator, union-attr]
    assert torch.allclose(rows, features.unsqueeze(2).expand_as(rows), atol=1e-12)


@axes
def test_samples_of_another_number_of_axes_are_refused(spatial_dims: int) -> None:
    model = small_model(RATIOS, spatial_dims=spatial_dims)
    with pytest.raises(DataError, match=f"samples .* of {spatial_dims} axes; received a size of 2, 13x17"):
        model.encode(torch.zeros(1, 2, 13, 17))
