from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from hvq import config as configuration
from hvq import config_data, config_losses, config_priors, config_quantizers
from hvq.autoencoders import AutoencoderLoss, ConvolutionalDecoder, ConvolutionalEncoder
from hvq.autoencoders.discriminator import PatchDiscriminator
from hvq.autoencoders.reconstruction_losses import DiscretizedLogistic
from hvq.config import AutoencoderConfig, LevelConfig, PriorStageConfig, RunConfig
from hvq.data import (
    Augmentation,
    Streaming,
    array_sources,
    digit_sources,
    folder_sources,
    hub_sources,
    photo_sources,
    shard_sources,
    tone_sources,
    volume_sources,
    wave_sources,
)
from hvq.evaluation.precision_recall import ManifoldPrecisionRecall
from hvq.level_names import default_level_names
from hvq.priors import PixelCNNPrior, PixelSNAILPrior, SamplingOptions, TransformerPrior
from hvq.quantizers import VectorQuantizer
from hvq.quantizers.finite_scalar import FiniteScalarQuantizer
from hvq.quantizers.gaussian import GaussianBottleneck
from hvq.quantizers.gumbel import GumbelQuantizer
from hvq.quantizers.lookup_free import LookupFreeQuantizer
from hvq.quantizers.residual import ResidualQuantizer
from hvq.quantizers.sim import SimQuantizer

# A configuration, what it describes, and how many defaults the two have in common at the least.
DESCRIBED: list[tuple[type[BaseModel], Callable[..., Any], int]] = [
    (config_quantizers.VectorQuantizerConfig, VectorQuantizer, 8),
    (config_quantizers.FiniteScalarQuantizerConfig, FiniteScalarQuantizer, 1),
    (config_quantizers.LookupFreeQuantizerConfig, LookupFreeQuantizer, 4),
    (config_quantizers.SimQuantizerConfig, SimQuantizer, 1),
    (config_quantizers.GumbelQuantizerConfig, GumbelQuantizer, 4),
    (config_quantizers.GaussianBottleneckConfig, GaussianBottleneck, 0),
    (config_quantizers.ResidualQuantizerConfig, ResidualQuantizer, 1),
    (config_priors.TransformerPriorConfig, TransformerPrior, 5),
    (config_priors.PixelSNAILPriorConfig, PixelSNAILPrior, 11),
    (config_priors.PixelCNNPriorConfig, PixelCNNPrior, 6),
    (configuration.LevelConfig, ConvolutionalEncoder, 2),
    (configuration.LevelConfig, ConvolutionalDecoder, 2),
    (configuration.DecoderConfig, ConvolutionalDecoder, 2),
    (configuration.AutoencoderConfig, ConvolutionalEncoder, 1),
    (configuration.AutoencoderTrainingConfig, AutoencoderLoss, 4),
    (config_losses.DiscretizedLogisticConfig, DiscretizedLogistic, 1),
    (config_losses.AdversarialConfig, PatchDiscriminator, 3),
    (configuration.CodeSamplingConfig, SamplingOptions, 4),
    (configuration.EvaluationConfig, ManifoldPrecisionRecall, 1),
    (config_data.AugmentationConfig, Augmentation, 4),
    (config_data.DigitsConfig, digit_sources, 2),
    (config_data.PhotosConfig, photo_sources, 3),
    (config_data.FolderConfig, folder_sources, 4),
    (config_data.ArrayConfig, array_sources, 2),
    (config_data.ShardsConfig, shard_sources, 6),
    (config_data.HubConfig, hub_sources, 7),
    (config_data.StreamingConfig, Streaming, 3),
    (config_data.WavesConfig, wave_sources, 5),
    (config_data.TonesConfig, tone_sources, 4),
    (config_data.VolumesConfig, volume_sources, 3),
]


MODELS = [
    value
    for module in (configuration, config_data, config_losses, config_priors, config_quantizers)
    for value in vars(module).values()
    if inspect.isclass(value) and issubclass(value, configuration.FrozenModel)
]


def _levels(*names: str) -> dict[str, LevelConfig]:
    return {name: LevelConfig(ratio=2) for name in names}


def _run(**fields: Any) -> RunConfig:
    return RunConfig.model_validate({"autoencoder": {"channels": 1, "levels": {"top": {"ratio": 4}}}, **fields})


@pytest.mark.parametrize(("config", "described", "shared"), DESCRIBED)
def test_defaults_are_those_of_the_constructor(
    config: type[BaseModel], described: Callable[..., Any], shared: int
) -> None:
    parameters = inspect.signature(described).parameters
    # Sections such as `augmentation` are objects on one side and None on the other.
    plain = {
        name: field.default
        for name, field in config.model_fields.items()
        if name in parameters
        and parameters[name].default is not inspect.Parameter.empty
        and not field.is_required()
        and field.default_factory is None
    }
    assert {name: parameters[name].default for name in plain} == plain
    assert len(plain) >= shared


def test_every_configuration_is_frozen_and_refuses_unknown_fields() -> None:
    run = _run()
    with pytest.raises(ValidationError):
        run.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        _run(sede=3)
    assert len(MODELS) > 10
    assert all(model.model_config.get("frozen") and model.model_config.get("extra") == "forbid" for model in MODELS)


def test_a_level_without_codes_has_no_prior() -> None:
    levels = {"top": {"ratio": 4, "quantizer": {"kind": "gaussian"}}}
    assert _run(autoencoder={"channels": 1, "levels": levels}).priors == {}
    with pytest.raises(ValidationError, match="priors names top, whose quantizer is gaussian and gives no codes"):
        _run(autoencoder={"channels": 1, "levels": levels}, priors={"top": {}})


def test_every_field_says_what_it_means() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in MODELS
        for name, field in model.model_fields.items()
        if name != "kind" and not field.description
    ]
    assert silent == []


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 11])
@given(data=st.data())
def test_default_level_names_go_coarse_to_fine_whatever_the_order_given(depth: int, data: st.DataObject) -> None:
    names = default_level_names(depth)
    shuffled = data.draw(st.permutations(names))
    assert list(AutoencoderConfig(levels=_levels(*shuffled)).levels) == list(names)


def test_eleven_levels_are_ordered_by_number_and_not_by_letters() -> None:
    names = sorted(f"level{i}" for i in range(11))
    assert names[2] == "level10"
    assert list(AutoencoderConfig(levels=_levels(*names)).levels)[-1] == "level10"


def test_other_level_names_keep_the_order_of_the_file() -> None:
    for names in (["coarse", "fine"], ["fine", "coarse"], ["bottom", "top", "extra"], ["bottom"]):
        assert list(AutoencoderConfig(levels=_levels(*names)).levels) == names


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "two words", "häh"])
def test_level_names_that_are_no_folder_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        AutoencoderConfig(levels=_levels(name))


def test_channels_of_data_and_autoencoder_agree() -> None:
    with pytest.raises(ValidationError, match=r"data.channels is 3 and autoencoder.channels is 1"):
        _run(data={"kind": "photos"})


def test_images_are_at_least_as_large_as_the_coarsest_stride() -> None:
    levels = {"top": {"ratio": 3}, "bottom": {"ratio": 5}}
    with pytest.raises(ValidationError, match="14x17 is smaller than the coarsest stride 15"):
        _run(autoencoder={"channels": 1, "levels": levels}, data={"kind": "digits", "size": [14, 17]})
    smallest = _run(autoencoder={"channels": 1, "levels": levels}, data={"kind": "digits", "size": [15, 17]})
    assert smallest.data.size == (15, 17)


def test_priors_name_levels() -> None:
    with pytest.raises(ValidationError, match="priors names bottom, which is not a level; levels are top"):
        _run(priors={"bottom": {}})
    run = _run(priors={"top": {"model": {"layers": 7}}})
    assert run.prior("top").model.layers == 7
    assert _run().prior("top") == PriorStageConfig()


def test_attention_heads_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="width must be a multiple of twice heads; received 256 and 3"):
        _run(priors={"top": {"model": {"heads": 3}}})


def test_a_kind_alone_stands_for_that_loss_of_pixels() -> None:
    short, long = _run(autoencoder_training={"reconstruction": "l1"}), {"pixels": {"kind": "l1", "weight": 1.0}}
    assert short == _run(autoencoder_training={"reconstruction": long})
    assert short.model_dump(mode="json")["autoencoder_training"]["reconstruction"] == long


def test_a_scale_is_learned_where_something_teaches_it() -> None:
    autoencoder = {"channels": 1, "levels": {"top": {"ratio": 4}}, "decoder": {"learn_scale": True}}
    with pytest.raises(ValidationError, match="nothing teaches the scale"):
        _run(autoencoder=autoencoder)
    assert _run(autoencoder=autoencoder, autoencoder_training={"reconstruction": "discretized_logistic"})


def test_one_level_has_no_coarser_ones() -> None:
    terms = {"reconstruction": {"pixels": {"kind": "mse"}, "levels": {"kind": "per_level"}}}
    with pytest.raises(ValidationError, match="takes two levels or more; there is one, top"):
        _run(autoencoder_training=terms)
    assert _run(autoencoder={"channels": 1, "levels": _levels("top", "bottom")}, autoencoder_training=terms)


@pytest.mark.parametrize(
    ("terms", "others", "fault"),
    [
        ({"a": {"kind": "adversarial"}}, {}, "nothing beside the adversarial term a"),
        ({"a": {"kind": "adversarial"}, "b": {"kind": "adversarial"}}, {}, "room for one adversarial term; .* a, b"),
        ({"a": {"kind": "adversarial"}, "b": {"kind": "l1"}}, {"compile": True}, "compile and the adversarial term a"),
        (
            {"a": {"kind": "adversarial", "layers": 4}, "b": {"kind": "l1"}},
            {},
            r"reconstruction\.a\.layers is 4, which takes images of at least 48 pixels per side; data.size is 32x32",
        ),
    ],
)
def test_an_adversary_that_cannot_be_is_refused(terms: dict[str, Any], others: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        _run(autoencoder_training={"reconstruction": terms, **others})


def test_an_adversary_is_found_by_its_name() -> None:
    terms = {"pixels": {"kind": "mse"}, "critic": {"kind": "adversarial", "width": 7}}
    found = _run(autoencoder_training={"reconstruction": terms}).autoencoder_training.adversary
    assert found is not None
    assert (found[0], found[1].width) == ("critic", 7)
    assert _run().autoencoder_training.adversary is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        _run(autoencoder_training={"weight_decay": value})


def test_a_run_survives_being_written_as_json() -> None:
    run = _run(priors={"top": {"sampling": {"top_k": 5}}}, data={"kind": "digits", "size": [37, 41]})
    assert RunConfig.model_validate(json.loads(json.dumps(run.model_dump(mode="json")))) == run


# --- signals and volumes ---

_TONES: dict[str, Any] = {"data": {"kind": "tones", "size": [64]}}
_VOLUMES: dict[str, Any] = {"data": {"kind": "volumes", "size": [8, 8, 8]}}


def _spatial(spatial_dims: int, **fields: Any) -> RunConfig:
    data = _TONES if spatial_dims == 1 else _VOLUMES
    autoencoder = {"channels": 1, "spatial_dims": spatial_dims, "levels": {"top": {"ratio": 4}}}
    return _run(**{**data, "autoencoder": autoencoder, **fields})


@pytest.mark.parametrize("spatial_dims", [1, 3])
def test_data_and_autoencoder_have_the_same_axes(spatial_dims: int) -> None:
    assert len(_spatial(spatial_dims).data.size) == spatial_dims
    with pytest.raises(ValidationError, match=f"autoencoder.spatial_dims is {spatial_dims}, and data of kind digits"):
        _spatial(spatial_dims, data={"kind": "digits"})
    with pytest.raises(ValidationError, match=r"spatial_dims is 2, and data of kind .* set it to the number of axes"):
        _run(**(_TONES if spatial_dims == 1 else _VOLUMES))


@pytest.mark.parametrize("kind", ["pixelsnail", "pixelcnn"])
def test_convolutional_priors_are_refused_of_volumes_alone(kind: str) -> None:
    assert _spatial(1, priors={"top": {"model": {"kind": kind}}}).prior("top").model.kind == kind
    with pytest.raises(ValidationError, match=f"priors.top.model.kind is {kind}, .* take kind transformer"):
        _spatial(3, priors={"top": {"model": {"kind": kind}}})


@pytest.mark.parametrize("term", [{"kind": "perceptual", "extractor": "lpips"}, {"kind": "adversarial"}])
def test_losses_whose_networks_see_images_are_refused(term: dict[str, Any]) -> None:
    training = {"reconstruction": {"pixels": {"kind": "mse"}, "critic": term}}
    with pytest.raises(ValidationError, match=r"reconstruction.critic is of kind .* take other terms, such as mse"):
        _spatial(1, data={"kind": "tones", "size": [64]}, autoencoder_training=training)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"size": [32], "channels": 1, "augmentation": {"flip": True}}, "data.augmentation changes images"),
        ({"size": [32, 32], "channels": 2}, "data.channels of images must be 1 or 3; received 2"),
        ({"size": [32, 32], "channels": 1, "sample_rate": 8000}, "data.sample_rate is of sounds"),
        ({"size": [4, 4, 4, 4], "channels": 1}, "at most 3 items"),
    ],
)
def test_arrays_have_what_suits_their_axes(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        config_data.ArrayConfig(train="a.npz", validation="b.npz", **fields)
