from __future__ import annotations

import pytest
import torch

from hvq.autoencoders import ConvolutionalEncoder, ResidualBlock, build_autoencoder, convolutional_autoencoder
from hvq.errors import HVQError
from hvq.quantizers import VectorQuantizer
from tests.autoencoders.small import pictures, small_config


def test_every_level_gets_its_own_numbers() -> None:
    model = convolutional_autoencoder(
        channels=2,
        levels={
            "bottom": {"ratio": 3, "width": 10, "residual_blocks": 1, "codebook_size": 13, "code_dimension": 3},
            "top": {
                "ratio": 2,
                "width": 14,
                "residual_blocks": 3,
                "codebook_size": 17,
                "code_dimension": 5,
                "quantizer": {"learning": "gradient", "decay": 0.5, "revival_threshold": 0.2},
            },
        },
        decoder={"width": 6},
    )
    assert model.level_names == ("top", "bottom")
    assert model.strides == {"top": 6, "bottom": 3}
    top = model.quantizers["top"]
    assert isinstance(top, VectorQuantizer)
    assert (
        top.codebook_size,
        top.code_dimension,
        top.learning,
        top.codebooks[0].decay,
        top.codebooks[0].revival_threshold,
    ) == (
        17,
        5,
        "gradient",
        0.5,
        0.2,
    )
    assert model.quantizers["bottom"].codebook_size == 13
    encoder = model.levels["top"].encoder
    assert isinstance(encoder, ConvolutionalEncoder)
    assert sum(isinstance(layer, ResidualBlock) for layer in encoder) == 3
    assert model.levels["top"].projection.in_channels == 14, "the coarsest level is told nothing"
    assert model.levels["bottom"].projection.in_channels == 10 + 5, "features, and as much as the top's vectors"
    assert model.levels["bottom"].merge is None


def test_level_dropout_gives_finer_levels_an_absent_vector() -> None:
    model = build_autoencoder(small_config((2, 1, 2), level_dropout=0.1))
    assert [level.absent is not None for level in model.levels.values()] == [False, True, True]
    model = build_autoencoder(small_config((2, 1, 2)))
    assert [level.absent is not None for level in model.levels.values()] == [False, False, False]


def test_names_of_ones_own_keep_their_order() -> None:
    model = build_autoencoder(small_config((2, 1, 2), names=["zebra", "ape", "mole"]))
    assert model.level_names == ("zebra", "ape", "mole")
    assert tuple(model.encode(pictures(1, 8, 8))) == ("zebra", "ape", "mole")


@pytest.mark.parametrize("blocks", ["residual", "rezero"])
@pytest.mark.parametrize("sees", ["context", "vectors", "vectors_throughout"])
def test_all_blocks_go_with_all_views(blocks: str, sees: str) -> None:
    model = build_autoencoder(small_config((2, 1, 3), blocks=blocks, sees=sees)).eval()
    images = pictures(2, 13, 18)
    codes = model.encode(images)
    assert torch.equal(model.decode(codes, size=(13, 18)), model(images).reconstruction)


def test_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = build_autoencoder(small_config((2, 4)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_names_that_modules_already_have_are_refused() -> None:
    with pytest.raises(HVQError, match="values"):
        build_autoencoder(small_config((2,), names=["values"]))
