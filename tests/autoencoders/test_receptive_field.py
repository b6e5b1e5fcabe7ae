"""How far modules see, against gradients of copies whose weights are all positive, so that nothing cancels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hvq.autoencoders import (
    Autoencoder,
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    Level,
    ReZeroDecoder,
    ReZeroEncoder,
    needed_overlap,
)
from hvq.autoencoders.receptive_field import ReceptiveField, needed_by
from hvq.errors import ConfigurationError
from hvq.quantizers import VectorQuantizer
from tests.autoencoders.small import small_model

SIZES = {"in_channels": 2, "width": 5, "residual_blocks": 2, "residual_width": 3}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "encoder of 2": lambda: ConvolutionalEncoder(ratio=2, **SIZES),
    "encoder of 6": lambda: ConvolutionalEncoder(ratio=6, **SIZES),
    "rezero encoder of 3": lambda: ReZeroEncoder(ratio=3, **SIZES),
    "decoder of 4": lambda: ConvolutionalDecoder(ratio=4, out_channels=2, **SIZES),
    "decoder of 3": lambda: ConvolutionalDecoder(ratio=3, out_channels=2, **SIZES),
    "rezero decoder of 6": lambda: ReZeroDecoder(ratio=6, out_channels=2, **SIZES),
    "dilated": lambda: nn.Sequential(nn.Conv2d(2, 3, 5, dilation=3, padding=6), nn.GELU(), nn.Conv2d(3, 2, 1)),
    "enlarging by hand": lambda: nn.ConvTranspose2d(2, 3, 7, stride=3, padding=2, output_padding=1),
}


def positive(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.fill_(0.1)
    return copied


def seen(give: Callable[[Tensor], Tensor], given: Tensor, interval: tuple[int, int]) -> tuple[int, int]:
    """The first and the last column of what is given on which columns of what it gives depend."""
    given.requires_grad_(True)
    give(given)[..., interval[0] : interval[1] + 1].sum().backward()
    columns = given.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten().tolist()
    return columns[0], columns[-1]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("interval", [(60, 60), (59, 61), (62, 67)])
def test_it_is_what_gradients_reach(name: str, interval: tuple[int, int]) -> None:
    module = MODULES[name]()
    given = torch.ones(1, 2, 6, 60 if "decoder" in name or "enlarging" in name else 450, dtype=torch.float64)
    assert needed_by(module, interval, axis=1) == seen(positive(module), given, interval)


def test_axes_may_differ() -> None:
    module = nn.Conv2d(1, 1, (3, 7), padding=(1, 3))
    assert [needed_by(module, (10, 10), axis) for axis in (0, 1)] == [(9, 11), (7, 13)]


class _PassedThrough(nn.Module):
    """A quantizer through which gradients go as if it were not there."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, latents: Tensor, mask: Tensor | None = None) -> object:
        return type("Result", (), {"vectors": latents, "codes": latents.movedim(1, -1)})()


RATIOS = [(4,), (2, 4), (3, 2), (2, 3, 2)]


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("sees", ["context", "vectors", "vectors_throughout"])
@pytest.mark.parametrize("blocks", ["residual", "rezero"])
def test_codes_see_as_far_as_gradients_reach(ratios: tuple[int, ...], sees: str, blocks: str) -> None:
    model = small_model(ratios, sees=sees, blocks=blocks)
    field, strides = ReceptiveField(model, 1), model.strides
    linear = positive(model)
    for level in linear.levels.values():
        level.quantizer = _PassedThrough(level.quantizer)
    stride, cells = field.stride, 41
    reach = 0
    for name in model.level_names:
        images = torch.ones(1, 2, stride, cells * stride, dtype=torch.float64)
        middle, each = cells // 2 * stride, stride // strides[name]
        first, last = seen(
            lambda pixels, name=name: linear._quantize(pixels)[0][name].codes.movedim(-1, 1),
            images,
            (cells // 2 * each, (cells // 2 + 1) * each - 1),
        )
        assert first > 0, "the image is wide enough to tell"
        assert last < cells * stride - 1
        reach = max(reach, middle - first, last - (middle + stride - 1))
    assert field.of_encoding() == reach


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("sees", ["context", "vectors", "vectors_throughout"])
def test_pixels_see_as_far_as_gradients_reach(ratios: tuple[int, ...], sees: str) -> None:
    model = small_model(ratios, sees=sees)
    field, linear, cells = ReceptiveField(model, 1), positive(model), 41
    stride, middle, reach = field.stride, 20 * field.stride, 0
    vectors = {
        level.name: torch.ones(
            1,
            level.quantizer.code_dimension,
            *(n // model.strides[level.name] for n in (stride, cells * stride)),
            dtype=torch.float64,
        )
        for level in model.levels.values()
    }
    for name in vectors:
        given = vectors[name].clone()
        first, last = seen(
            lambda own, name=name: linear._image({**vectors, name: own}, []), given, (middle, middle + stride - 1)
        )
        each = model.strides[name]
        reach = max(reach, middle - first * each, (last + 1) * each - (middle + stride))
    assert field.of_decoding() == reach


@pytest.mark.parametrize(
    "module", [nn.GroupNorm(1, 2), nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")]
)
def test_what_may_see_everything_is_refused(module: nn.Module) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"how far a {type(module).__name__} sees is not known.*give an overl"
    ):
        needed_by(nn.Sequential(nn.ReLU(), module), (0, 0))


class _WithMore(nn.Sequential):
    """Sees all of an image, by a forward of its own."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + features.mean(dim=(2, 3), keepdim=True)


def test_a_sequence_with_a_forward_of_its_own_is_not_known() -> None:
    with pytest.raises(ConfigurationError, match="how far a _WithMore sees is not known"):
        needed_by(_WithMore(nn.Conv2d(2, 2, 3, padding=1)), (0, 0))


def test_a_network_of_ones_own_in_a_level() -> None:
    level = Level(
        name="only",
        ratio=2,
        encoder=nn.Sequential(nn.Conv2d(1, 5, 2, stride=2), nn.GELU(), nn.Conv2d(5, 7, 3, padding=1)),
        projection=nn.Conv2d(7, 3, 1),
        quantizer=VectorQuantizer(codebook_size=11, code_dimension=3),
        merge=None,
    )
    decoder = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.GELU(), nn.ConvTranspose2d(5, 1, 2, stride=2))
    model = Autoencoder(levels=[level], decoder=decoder)
    assert (needed_overlap(model, "encode"), needed_overlap(model, "decode")) == (2, 2)
