"""Codebooks of vector-quantize-pytorch and encodec give the same codes and vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hvq.config_quantizers import ResidualQuantizerConfig, VectorQuantizerConfig
from hvq.conversion import convert_codebooks
from hvq.errors import CheckpointError
from tests.conversion.states import State, random_state

K, D, POSITIONS = 13, 6, 17
# How codebooks are called, and the flag beside them; with the axis of heads, or without.
LAYOUTS = {
    "vector-quantize-pytorch": ("layers.{}._codebook.", "initted", True),
    "encodec": ("quantizer.vq.layers.{}._codebook.", "inited", False),
    "transformers": ("quantizer.layers.{}.codebook.", "inited", False),
}


def _codebook(name: str, flag: str, *, heads: int | None, dimension: int = D, seed: int = 0) -> State:
    axes = () if heads is None else (heads,)
    shapes = {"embed": (*axes, K, dimension), "embed_avg": (*axes, K, dimension), "cluster_size": (*axes, K)}
    state = random_state({f"{name}{tensor}": shape for tensor, shape in shapes.items()}, seed)
    return {**state, f"{name}{flag}": torch.tensor([True])}


def _latents(dimension: int = D) -> Tensor:
    return torch.randn(2, dimension, POSITIONS, generator=torch.Generator().manual_seed(7))


def _nearest(vectors: Tensor, latents: Tensor) -> Tensor:
    """`[B, T]` of latents `[B, T, d]` among `[K, d]`."""
    return (latents.double().unsqueeze(2) - vectors.double()).square().sum(dim=-1).argmin(dim=-1)


def test_one_codebook() -> None:
    state, latents = _codebook("_codebook.", "initted", heads=1), _latents()
    converted = convert_codebooks(state)
    result = converted.model(latents)
    vectors = state["_codebook.embed"][0]
    expected = _nearest(vectors, latents.transpose(1, 2))
    assert torch.equal(result.codes, expected)
    assert torch.equal(result.vectors, vectors[expected].transpose(1, 2))
    assert converted.config == VectorQuantizerConfig()
    assert converted.model.initialized


@pytest.mark.parametrize("shared", [False, True])
def test_heads_behind_a_projection(shared: bool) -> None:
    heads, inner, outer = 2, 3, 7
    state = _codebook("_codebook.", "initted", heads=1 if shared else heads, dimension=inner)
    projections = {"project_in.weight": (heads * inner, outer), "project_in.bias": (heads * inner,)}
    projections |= {"project_out.weight": (outer, heads * inner), "project_out.bias": (outer,)}
    state |= random_state(projections, seed=1)
    latents = _latents(outer)
    result = convert_codebooks(state).model(latents)
    within = functional.linear(latents.transpose(1, 2), state["project_in.weight"], state["project_in.bias"])
    codebooks = [state["_codebook.embed"][0 if shared else i] for i in range(heads)]
    codes = [_nearest(vectors, part) for vectors, part in zip(codebooks, within.chunk(heads, dim=-1), strict=True)]
    assert torch.equal(result.codes, torch.stack(codes, dim=-1))
    chosen = torch.cat([vectors[code] for vectors, code in zip(codebooks, codes, strict=True)], dim=-1)
    expected = functional.linear(chosen, state["project_out.weight"], state["project_out.bias"])
    torch.testing.assert_close(result.vectors, expected.transpose(1, 2))


def test_vectors_of_length_one_are_compared_by_angle() -> None:
    state, latents = _codebook("_codebook.", "initted", heads=1), _latents()
    vectors = functional.normalize(state["_codebook.embed"], dim=-1)
    state["_codebook.embed"] = vectors
    converted = convert_codebooks(state)
    assert converted.config == VectorQuantizerConfig(metric="cosine")
    similarity = functional.normalize(latents.transpose(1, 2), dim=-1) @ vectors[0].T
    assert torch.equal(converted.model.encode(latents), similarity.argmax(dim=-1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_in_a_row(layout: str) -> None:
    name, flag, with_heads = LAYOUTS[layout]
    heads, layers = 1 if with_heads else None, 11
    # Eleven: in the order of numbers, not of letters.
    parts = [_codebook(name.format(i), flag, heads=heads, seed=i) for i in range(layers)]
    state = {key: tensor for part in reversed(parts) for key, tensor in part.items()}
    others = {} if with_heads else {"encoder.layers.0.conv.weight": torch.zeros(3), "decoder.bias": torch.zeros(2)}
    converted = convert_codebooks({**state, **others})
    assert converted.left_out == len(others)
    assert converted.config == ResidualQuantizerConfig(num_quantizers=layers)
    latents = _latents()
    residual, codes = latents.transpose(1, 2).double(), []
    for i in range(layers):
        vectors = state[f"{name.format(i)}embed"].reshape(K, D).double()
        codes.append(_nearest(vectors, residual))
        residual = residual - vectors[codes[-1]]
    result = converted.model(latents)
    assert torch.equal(result.codes, torch.stack(codes, dim=-1))
    expected = latents - residual.transpose(1, 2).float()
    torch.testing.assert_close(result.vectors, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(converted.model.decode(result.codes), expected, rtol=0, atol=1e-5)


def test_one_codebook_for_all_places_is_kept_once() -> None:
    one = _codebook("", "initted", heads=1)
    state = {f"layers.{i}._codebook.{name}": tensor for i in range(3) for name, tensor in one.items()}
    converted = convert_codebooks(state)
    assert converted.config == ResidualQuantizerConfig(num_quantizers=3, shared=True)
    assert len(converted.model.codebooks) == 1
    assert converted.model.encode(_latents()).shape == (2, POSITIONS, 3)


def test_a_single_layer_has_no_axis_of_codes() -> None:
    state = _codebook("quantizer.layers.0.codebook.", "inited", heads=None)
    assert convert_codebooks(state).model.encode(_latents()).shape == (2, POSITIONS)


def test_a_codebook_that_saw_nothing_is_still_to_be_initialized() -> None:
    state = _codebook("_codebook.", "initted", heads=1)
    state["_codebook.initted"] = torch.tensor([0.0])
    assert not convert_codebooks(state).model.initialized


def test_what_has_no_counterpart_is_refused() -> None:
    state = _codebook("_codebook.", "initted", heads=1)
    with pytest.raises(CheckpointError, match=r"the unknown _codebook\.codebook_mean"):
        convert_codebooks({**state, "_codebook.codebook_mean": torch.zeros(1, 1, D)})
    with pytest.raises(CheckpointError, match=r"lacks _codebook\.cluster_size"):
        convert_codebooks({name: tensor for name, tensor in state.items() if "cluster" not in name})
    with pytest.raises(CheckpointError, match=r"has 2, at first\., second\.: save the state_dict"):
        convert_codebooks({f"{part}.{name}": tensor for part in ("first", "second") for name, tensor in state.items()})
    with pytest.raises(CheckpointError, match=r"lacks project_in\.bias"):
        convert_codebooks({**state, "project_in.weight": torch.zeros(D, 5)})
    with pytest.raises(CheckpointError, match=r"lacks _codebook\.embed"):
        convert_codebooks({"weight": torch.zeros(2)})
    row = {f"layers.{i}.{name}": tensor for i in range(2) for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match=r"has project_out\.weight: put the projections into the encoder"):
        convert_codebooks({**row, "project_out.weight": torch.zeros(7, D)})
    two_heads = {f"layers.1.{name}": tensor for name, tensor in _codebook("_codebook.", "initted", heads=2).items()}
    with pytest.raises(CheckpointError, match="one size, with one head each"):
        convert_codebooks({**row, **two_heads})
