"""Every preset that is shipped can be built, without a tensor of it ever being allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import OptimizationConfig, RunConfig
from hvq.config_loading import load_run_config
from hvq.config_priors import PixelSNAILPriorConfig
from hvq.priors import Prior, build_prior
from hvq.quantizers import elbo_weight
from tests.runs import RECIPES

PRESETS = {path.relative_to(RECIPES / "configs").as_posix(): path for path in (RECIPES / "configs").rglob("*.y*ml")}
NAMED = (
    "digits",
    "digits-3level",
    "digits-vae",
    "photos",
    "cifar10-vqvae",
    "cifar10-vqvae2",
    "ffhq256-vqvae2",
    "imagenet256-vqvae2",
    "ffhq1024-3level",
    "tones-vqvae2",
    "volumes-vqvae2",
)


def _autoencoder(config: RunConfig) -> Autoencoder:
    with torch.device("meta"):
        return build_autoencoder(config.autoencoder)


def _priors(config: RunConfig, num_classes: int = 10) -> Iterator[tuple[str, Prior]]:
    coarser: dict[str, int] = {}
    for name, level in config.autoencoder.levels.items():
        with torch.device("meta"):
            yield (
                name,
                build_prior(
                    config.prior(name).model,
                    codebook_size=level.codebook_size,
                    coarser=dict(coarser),
                    num_classes=num_classes,
                    spatial_dims=config.autoencoder.spatial_dims,
                ),
            )
        coarser[name] = level.codebook_size


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_presets_that_are_named_are_there() -> None:
    assert {f"{name}.yaml" for name in NAMED} <= PRESETS.keys()


@pytest.fixture(params=sorted(PRESETS))
def preset(request: pytest.FixtureRequest) -> RunConfig:
    return load_run_config(PRESETS[request.param])


def test_a_preset_builds(preset: RunConfig) -> None:
    model = _autoencoder(preset)
    assert model.level_names == tuple(preset.autoencoder.levels)
    priors = dict(_priors(preset))
    assert tuple(priors) == model.level_names
    assert all(_parameters(prior) > 0 for prior in priors.values())
    assert all(tensor.is_meta for built in (model, *priors.values()) for tensor in built.state_dict().values())


def test_its_grids_fit_its_images(preset: RunConfig) -> None:
    model = _autoencoder(preset)
    ratios = [level.ratio for level in preset.autoencoder.levels.values()]
    assert [n % math.prod(ratios) for n in preset.data.size] == [0] * len(preset.data.size)
    grids = list(model.grids(preset.data.size).values())
    for ratio, coarse, fine in zip(ratios, grids, [*grids[1:], preset.data.size], strict=True):
        assert tuple(n * ratio for n in coarse) == tuple(fine)


def test_its_batches_can_be_cut(preset: RunConfig) -> None:
    stages: list[OptimizationConfig] = [preset.autoencoder_training]
    stages += [preset.prior(name).training for name in preset.autoencoder.levels]
    assert [stage.batch_size % stage.micro_batches for stage in stages] == [0] * len(stages)
    assert all(stage.warmup_steps < stage.steps for stage in stages)


def test_the_sizes_that_are_asked_for() -> None:
    cifar = load_run_config(PRESETS["cifar10-vqvae2.yaml"])
    model = _autoencoder(cifar)
    assert _parameters(model) <= 1_390_000
    assert model.grids(cifar.data.size) == {"top": (4, 4), "bottom": (8, 8)}
    assert {quantizer.codebook_size for quantizer in model.quantizers.values()} == {512}
    assert (cifar.autoencoder_training.steps, cifar.autoencoder_training.batch_size) == (1_000, 128)
    imagenet = load_run_config(PRESETS["imagenet256-vqvae2.yaml"])
    assert _autoencoder(imagenet).grids(imagenet.data.size) == {"top": (32, 32), "bottom": (64, 64)}
    assert list(load_run_config(PRESETS["ffhq1024-3level.yaml"]).autoencoder.levels) == ["top", "middle", "bottom"]
    assert len(load_run_config(PRESETS["cifar10-vqvae.yaml"]).autoencoder.levels) == 1


def test_the_loss_of_the_plain_vae_is_the_elbo_that_its_comment_states() -> None:
    path = PRESETS["digits-vae.yaml"]
    config = load_run_config(path)
    (level,) = config.autoencoder.levels.values()
    assert level.quantizer.kind == "gaussian"
    (deviation,) = re.findall(r"standard deviation ([\d.]+) on pixels", path.read_text())
    weight = elbo_weight(
        variance=float(deviation) ** 2, values_per_position=config.autoencoder.channels * level.ratio**2
    )
    assert config.autoencoder_training.kl_weight == pytest.approx(weight)


# Of the priors in the appendix of arXiv 1906.00446: residual units, layers, attention layers, batch, grid.
PAPER = {
    "imagenet256-vqvae2": {"top": (2048, 20, 4, 1024, (32, 32)), "bottom": (1024, 20, 0, 512, (64, 64))},
    "ffhq256-vqvae2": {"top": (2048, 20, 4, 1024, (32, 32)), "bottom": (1024, 20, 1, 512, (64, 64))},
    "ffhq1024-3level": {
        "top": (2048, 20, 4, 1024, (32, 32)),
        "middle": (1024, 20, 1, 512, (64, 64)),
        "bottom": (1024, 10, 0, 256, (128, 128)),
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_the_priors_have_the_sizes_that_their_comments_say(name: str) -> None:
    path = PRESETS[f"{name}.yaml"]
    config = load_run_config(path)
    grids = _autoencoder(config).grids(config.data.size)
    for level, sizes in PAPER[name].items():
        model, training = config.prior(level).model, config.prior(level).training
        assert isinstance(model, PixelSNAILPriorConfig)
        assert (model.width, model.kernel, model.heads) == (512, 5, 8)
        layers, attended = model.blocks * model.residual_blocks, model.blocks * model.attention
        assert (model.residual_width, layers, attended, training.batch_size, grids[level]) == sizes
    comment = re.findall(r"^#   (\w+): ([\d,]+) million parameters$", path.read_text(), flags=re.MULTILINE)
    millions = {level: round(_parameters(prior) / 1e6) for level, prior in _priors(config, num_classes=0)}
    assert {level: int(number.replace(",", "")) for level, number in comment} == millions
