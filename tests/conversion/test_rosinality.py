"""The converted autoencoder of rosinality computes what the original's formulae say."""

from __future__ import annotations

import pytest
import torch

from hvq.conversion import convert_rosinality
from hvq.errors import CheckpointError
from tests.conversion.states import SIZES, double, rosinality_decode, rosinality_encode, rosinality_state


def _images(batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 3, 24, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_codes_and_images_equal_the_originals() -> None:
    state, images = rosinality_state(), _images()
    model, _ = convert_rosinality(state)
    expected = rosinality_encode(double(state), images.double())
    codes = model.encode(images)
    assert list(codes) == ["top", "bottom"]
    for level, code in codes.items():
        assert torch.equal(code, expected[level])
        assert len(code.unique()) > SIZES[level] // 3
    reconstruction = rosinality_decode(double(state), expected)
    assert reconstruction.std() > 0.1
    torch.testing.assert_close(model.decode(codes).double(), reconstruction, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images).reconstruction.double(), reconstruction, rtol=0, atol=1e-5)


def test_training_goes_on_where_the_original_was() -> None:
    state = rosinality_state()
    model, _ = convert_rosinality(state)
    for level, name in {"top": "quantize_t", "bottom": "quantize_b"}.items():
        (codebook,) = model.quantizers[level].codebooks
        assert torch.equal(codebook.moving_counts, state[f"{name}.cluster_size"])
        assert codebook.initialized
        assert codebook.alive.all()
        # Averages of the very latents that its vectors stand for move them nowhere.
        latents = codebook.vectors.clone()
        statistics = codebook.statistics(latents, torch.arange(len(latents)), torch.ones(len(latents)), None)
        codebook.apply_statistics(statistics)
        torch.testing.assert_close(codebook.vectors, latents, rtol=1e-3, atol=1e-3)


def test_a_codebook_that_counted_nothing_has_a_mean() -> None:
    state = rosinality_state()
    state["quantize_t.cluster_size"].zero_()
    model, _ = convert_rosinality(state)
    expected = state["quantize_t.embed"].mean(dim=1)
    torch.testing.assert_close(model.quantizers["top"].mean_vector(), expected)


def test_half_precision_becomes_full() -> None:
    state = {name: tensor.half() for name, tensor in rosinality_state().items()}
    model, _ = convert_rosinality(state)
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    exact, _ = convert_rosinality({name: tensor.float() for name, tensor in state.items()})
    assert torch.equal(model(_images()).reconstruction, exact(_images()).reconstruction)


def test_no_residual_blocks() -> None:
    state = rosinality_state()
    rest = {name: tensor for name, tensor in state.items() if ".conv." not in name}
    # What follows the blocks moves up.
    moves = {"dec_t.blocks.4": "dec_t.blocks.2", "dec.blocks.4": "dec.blocks.2", "dec.blocks.6": "dec.blocks.4"}
    for old, new in moves.items():
        for ending in (".weight", ".bias"):
            rest[new + ending] = rest.pop(old + ending)
    model, config = convert_rosinality(rest)
    assert config.decoder.residual_blocks == config.levels["top"].residual_blocks == 0
    assert model.encode(_images())["top"].shape == (3, 3, 5)


def test_what_does_not_fit_is_named() -> None:
    state = rosinality_state()
    missing = {name: tensor for name, tensor in state.items() if name != "dec_t.blocks.1.conv.3.bias"}
    with pytest.raises(CheckpointError, match=r"lacks dec_t\.blocks\.1\.conv\.3\.bias; the file holds a part"):
        convert_rosinality(missing)
    with pytest.raises(CheckpointError, match=r"the unknown enc_m\.blocks\.0\.weight; parts were added"):
        convert_rosinality({**state, "enc_m.blocks.0.weight": torch.zeros(2)})
    renamed = {name.replace("upsample_t", "upsample"): tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"lacks upsample_t\.weight.* has the unknown upsample\.weight"):
        convert_rosinality(renamed)
    state["upsample_t.weight"] = state["upsample_t.weight"][:, :, :3]
    with pytest.raises(CheckpointError, match=r"upsample_t\.weight of shape \[5, 5, 3, 4\].*\[5, 5, 4, 4\]"):
        convert_rosinality(state)
    with pytest.raises(CheckpointError, match=r"lacks quantize_conv_t\.weight"):
        convert_rosinality({"enc_b.blocks.0.weight": torch.zeros(2)})
    state = rosinality_state()
    state["quantize_t.embed"] = state["quantize_t.embed"][:4]
    with pytest.raises(CheckpointError, match=r"quantize_t must have 11 vectors of length 5.* vectors \[11, 4\]"):
        convert_rosinality(state)
    state["quantize_b.embed"] = state["quantize_b.embed"][0]
    with pytest.raises(CheckpointError, match=r"quantize_b\.embed with 2 axes; it has shape \[13\]"):
        convert_rosinality(state)
