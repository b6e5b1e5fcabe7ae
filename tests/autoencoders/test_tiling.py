"""Tiles give the codes and pixels of the whole image, in forwards that are no larger than a tile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder, decode_tiled, encode_tiled, initialize_codebooks, needed_overlap
from hvq.errors import ConfigurationError, DataError
from tests.autoencoders.small import pictures, small_model


def exact_model(ratios: tuple[int, ...], **arguments: Any) -> Autoencoder:
    """In float64, with codebooks that are in use."""
    model = small_model(ratios, **arguments)
    initialize_codebooks(model, [pictures(4, 48, 48)])
    return model.requires_grad_(False).double().eval()


def smallest(model: Autoencoder, work: Any) -> int:
    """The smallest tile that is taken."""
    return 2 * needed_overlap(model, work) + max(model.strides.values())


@pytest.mark.parametrize("ratios", [(4,), (2, 4), (2, 3, 2)])
@pytest.mark.parametrize("sees", ["context", "vectors", "vectors_throughout"])
@pytest.mark.parametrize("blocks", ["residual", "rezero"])
def test_tiles_give_what_the_whole_gives(ratios: tuple[int, ...], sees: str, blocks: str) -> None:
    model = exact_model(ratios, sees=sees, blocks=blocks)
    stride = max(model.strides.values())
    tiles = {work: smallest(model, work) + 3 * stride + 1 for work in ("encode", "decode")}
    size = (stride + 3, 2 * tiles["encode"] - 5)
    images = pictures(2, *size, torch.float64)
    codes = model.encode(images)
    tiled = encode_tiled(model, images, tile=tiles["encode"])
    assert list(tiled) == list(codes)
    assert all(torch.equal(tiled[name], codes[name]) for name in codes)
    assert all(len(code.unique()) > 3 for code in codes.values()), "there is something to be right about"
    whole = model.decode(codes, size=size)
    rebuilt = decode_tiled(model, codes, size, tile=tiles["decode"])
    assert rebuilt.shape == whole.shape
    torch.testing.assert_close(rebuilt, whole, rtol=0, atol=1e-10)


def test_less_than_the_needed_overlap_shows() -> None:
    """Otherwise the others would be exact for any overlap, and say nothing."""
    model = exact_model((2, 4))
    images, stride = pictures(1, 8, 300, torch.float64), 8
    codes = model.encode(images)
    shorter = {work: needed_overlap(model, work) - stride for work in ("encode", "decode")}
    approximate = encode_tiled(model, images, tile=2 * shorter["encode"] + stride, overlap=shorter["encode"])
    whole = model.decode(codes)
    rebuilt = decode_tiled(model, codes, tile=2 * shorter["decode"] + stride, overlap=shorter["decode"])
    assert float((rebuilt - whole).abs().max()) > 1e-10
    none = encode_tiled(model, images, tile=stride, overlap=0)
    assert any(not torch.equal(none[name], codes[name]) for name in codes)
    agreement = {name: float((approximate[name] == codes[name]).double().mean()) for name in codes}
    assert min(agreement.values()) > 0.9, "what little is missing hardly matters"


@settings(max_examples=12, deadline=None)
@given(height=st.integers(6, 97), width=st.integers(6, 97), more=st.integers(0, 31), codes_more=st.integers(0, 31))
def test_any_size_and_any_tile(height: int, width: int, more: int, codes_more: int) -> None:
    torch.manual_seed(0)
    model = exact_model((3, 2), residual_blocks=0)
    images = pictures(1, height, width, torch.float64)
    codes = model.encode(images)
    tiled = encode_tiled(model, images, tile=smallest(model, "encode") + more)
    assert all(torch.equal(tiled[name], codes[name]) for name in codes)
    rebuilt = decode_tiled(model, codes, (height, width), tile=smallest(model, "decode") + codes_more)
    torch.testing.assert_close(rebuilt, model.decode(codes, size=(height, width)), rtol=0, atol=1e-10)


def test_levels_that_are_absent_and_codes_in_any_order() -> None:
    model = exact_model((2, 4), level_dropout=0.2)
    codes = model.encode(pictures(1, 40, 200, torch.float64))
    shuffled = dict(reversed(codes.items()))
    rebuilt = decode_tiled(model, shuffled, absent=["bottom"], tile=smallest(model, "decode"))
    torch.testing.assert_close(rebuilt, model.decode(codes, absent=["bottom"]), rtol=0, atol=1e-10)
    with pytest.raises(DataError, match="codes of level bottom must be on a grid"):
        decode_tiled(model, {**codes, "bottom": codes["bottom"][:, 1:]}, tile=512)


@contextmanager
def largest_activation(model: nn.Module) -> Iterator[list[int]]:
    """Numbers in the largest tensor that any module gives meanwhile."""
    largest = [0]

    def record(_module: nn.Module, _given: Any, gives: Any) -> None:
        if isinstance(gives, Tensor):
            largest[0] = max(largest[0], gives.numel())

    handles = [module.register_forward_hook(record) for module in model.modules()]
    yield largest
    for handle in handles:
        handle.remove()


def test_memory_is_that_of_a_tile_whatever_the_image() -> None:
    model, tile = small_model((2, 4)).eval(), 160
    found: dict[str, list[int]] = {"encode": [], "decode": []}
    for size in [(160, 160), (160, 480), (340, 640)]:
        images = pictures(1, *size)
        with largest_activation(model) as largest:
            codes = encode_tiled(model, images, tile=tile)
        found["encode"] += largest
        with largest_activation(model) as largest:
            decode_tiled(model, codes, size, tile=tile)
        found["decode"] += largest
    with largest_activation(model) as whole:
        model.encode(pictures(1, 340, 640))
    for numbers in found.values():
        assert len(set(numbers)) == 1
    assert whole[0] > 8 * found["encode"][0]


def test_tiles_that_are_too_small_are_refused_with_the_numbers() -> None:
    model = small_model((2, 4)).eval()
    overlap = needed_overlap(model, "encode")
    sentence = rf"at least {2 * overlap + 8} pixels per side to encode: an overlap of {overlap} .* received {overlap}"
    with pytest.raises(ConfigurationError, match=sentence):
        encode_tiled(model, pictures(1, 500, 500), tile=overlap)
    with pytest.raises(ConfigurationError, match="at least"):
        encode_tiled(model, pictures(1, 500, 500), tile=64, overlap=-8)
    with pytest.raises(DataError, match="smaller than the coarsest stride"):
        encode_tiled(model, pictures(1, 5, 500), tile=512)


def test_a_network_that_sees_everything_takes_an_overlap() -> None:
    model = small_model((4,)).eval()
    model.levels["top"].encoder.append(nn.GroupNorm(2, 6))
    images = pictures(1, 64, 64)
    with pytest.raises(ConfigurationError, match="how far a GroupNorm sees is not known"):
        encode_tiled(model, images, tile=48)
    codes = encode_tiled(model, images, tile=48, overlap=13)
    assert codes["top"].shape == (1, 16, 16)
    assert torch.equal(encode_tiled(model, images, tile=64, overlap=13)["top"], model.encode(images)["top"])


@pytest.mark.parametrize(("axes", "ratios", "fields"), [(1, (2, 3, 2), {}), (3, (2, 2), {"residual_blocks": 0})])
def test_signals_and_volumes(axes: int, ratios: tuple[int, ...], fields: dict[str, Any]) -> None:
    model = small_model(ratios, spatial_dims=axes, **fields).double().eval().requires_grad_(False)
    stride = max(model.strides.values())
    tiles = {work: smallest(model, work) + 2 * stride for work in ("encode", "decode")}
    # One axis that takes several tiles, and others that are not multiples of the stride.
    size = (*[stride + 3] * (axes - 1), 2 * tiles["encode"] + 5)
    images = torch.rand(1, 2, *size, dtype=torch.float64) * 2 - 1
    initialize_codebooks(model, [images])
    codes = model.encode(images)
    tiled = encode_tiled(model, images, tile=tiles["encode"])
    assert all(torch.equal(tiled[name], codes[name]) for name in codes)
    assert all(len(code.unique()) > 3 for code in codes.values())
    rebuilt = decode_tiled(model, codes, size, tile=tiles["decode"])
    torch.testing.assert_close(rebuilt, model.decode(codes, size=size), rtol=0, atol=1e-10)
