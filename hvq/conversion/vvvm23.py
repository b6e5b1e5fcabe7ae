"""The autoencoder of vvvm23/vqvae-2: any number of levels, of ReZero blocks, with batch norms everywhere.

Once trained, a batch norm scales and shifts each channel, and is folded into the convolution before it. What is joined
there fine to coarse is joined here coarse to fine, so input channels are turned round.

Letters: L levels, D code dimension, F features, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.autoencoders.convolution import stage_factors
from hvq.config import AutoencoderConfig
from hvq.conversion.tensors import CODEBOOK_TENSORS, Rule, adopt, count, fill, require_names, shape_of
from hvq.level_names import default_level_names

KIND = "vvvm23"
SIGNATURE = ("encoders.0.layers.0.0.weight", "codebooks.0.conv_in.weight")
"""Names by which a checkpoint of this kind is known."""

_NORM = ("weight", "bias", "running_mean", "running_var")
# Of torch's batch norms, which the original leaves as it is.
_EPSILON = 1e-5


def convert_vvvm23(tensors: Mapping[str, Tensor]) -> tuple[Autoencoder, AutoencoderConfig]:
    """An autoencoder that equals the original in evaluation mode, and the configuration it is built from.

    Args:
        tensors: the state dict of its `VQVAE`, whose sizes are read from the shapes.

    Raises:
        CheckpointError: which names the first tensors that are missing or not understood.
    """
    config = _read_config(tensors)
    model = build_autoencoder(config)
    names = list(config.levels)
    rules = [rule for i in range(len(names)) for rule in _level(config, i)]
    codebooks = [f"codebooks.{i}.{tensor}" for i in range(len(names)) for tensor in CODEBOOK_TENSORS]
    counters = [name for name in tensors if name.endswith(".num_batches_tracked")]
    expected = dict.fromkeys([*(name for rule in rules for name in rule.sources), *codebooks, *counters])
    require_names(tensors, list(expected), KIND)
    fill(model, rules, tensors, KIND)
    for i, name in enumerate(reversed(names)):
        (codebook,) = model.quantizers[name].codebooks
        # There, vectors are columns.
        there = f"codebooks.{i}"
        adopt(codebook, there, tensors[f"{there}.embed"].T, tensors[f"{there}.cluster_size"])
    return model.eval(), config


def _read_config(tensors: Mapping[str, Tensor]) -> AutoencoderConfig:
    number = max(1, count(tensors, "codebooks.{}.embed"))
    names = default_level_names(number)
    levels = {names[number - 1 - i]: _read_level(tensors, i) for i in range(number)}
    finest = levels[names[-1]]
    blocks = {name: finest[name] for name in ("width", "residual_blocks", "residual_width")}
    return AutoencoderConfig.model_validate(
        {
            "channels": shape_of(tensors, "encoders.0.layers.0.0.weight", 4, KIND)[1],
            "levels": {name: levels[name] for name in names},
            "decoder": {**blocks, "sees": "vectors_throughout"},
            "blocks": "rezero",
        }
    )


def _read_level(tensors: Mapping[str, Tensor], place: int) -> dict[str, int]:
    """The fields of a level, the finest of which has place 0."""
    halvings = count(tensors, f"encoders.{place}.layers.{{}}.0.weight")
    width = shape_of(tensors, f"encoders.{place}.layers.{halvings}.weight", 4, KIND)[0]
    code_dimension, codebook_size = shape_of(tensors, f"codebooks.{place}.embed", 2, KIND)
    block = f"encoders.{place}.layers.{halvings + 2}.stack.{{}}.layers.0.weight"
    blocks = count(tensors, block)
    return {
        "ratio": 2**halvings,
        "width": width,
        "residual_blocks": blocks,
        "residual_width": shape_of(tensors, block.format(0), 4, KIND)[0] if blocks else 1,
        "codebook_size": codebook_size,
        "code_dimension": code_dimension,
    }


# --- from names to names --------------------------------------------------------------------------------------------


def _level(config: AutoencoderConfig, i: int) -> list[Rule]:
    """The i-th level from the coarsest: its encoder, projection, decoder, and the enlargements of its vectors."""
    names = list(config.levels)
    name, place = names[i], len(names) - 1 - i
    level, finest = config.levels[name], i == len(names) - 1
    sizes = _Sizes(halvings=len(stage_factors(level.ratio)), blocks=level.residual_blocks)
    here = f"levels.{name}.projection"
    decoder = "decoder" if finest else f"levels.{name}.merge"
    rules = [
        *sizes.encoder(f"levels.{name}.encoder", f"encoders.{place}.layers"),
        Rule(f"{here}.weight", (f"codebooks.{place}.conv_in.weight",), partial(_turned, own=level.width)),
        Rule(f"{here}.bias", (f"codebooks.{place}.conv_in.bias",)),
        *sizes.decoder(decoder, f"decoders.{place}.layers", level.code_dimension),
    ]
    for stage, finer in enumerate(names[i:-1]):
        for step in range(len(stage_factors(config.levels[finer].ratio))):
            there = f"upscalers.{i}.stages.{stage}"
            target = f"enlargements.{name}.{stage}.{2 * step}"
            rules += _normed(target, f"{there}.{3 * step}", f"{there}.{3 * step + 1}", transposed=True)
    return rules


@dataclass(frozen=True)
class _Sizes:
    """How many halvings, and how many blocks, an encoder and the decoder of its level have."""

    halvings: int
    blocks: int

    def encoder(self, here: str, there: str) -> list[Rule]:
        steps, rules = self.halvings, []
        for i in range(steps):
            rules += _normed(f"{here}.{2 * i}", f"{there}.{i}.0", f"{there}.{i}.1")
        rules += _normed(f"{here}.{2 * steps}", f"{there}.{steps}", f"{there}.{steps + 1}")
        for j in range(self.blocks):
            rules += _block(f"{here}.{2 * steps + 1 + j}", f"{there}.{steps + 2}.stack.{j}")
        return rules

    def decoder(self, here: str, there: str, code_dimension: int) -> list[Rule]:
        first, steps = f"{there}.0", self.halvings
        rules = [
            Rule(f"{here}.0.weight", (f"{first}.weight",), partial(_turned, own=code_dimension)),
            Rule(f"{here}.0.bias", (f"{first}.bias",)),
        ]
        for j in range(self.blocks):
            rules += _block(f"{here}.{1 + j}", f"{there}.1.stack.{j}")
        larger = 1 + self.blocks
        for i in range(steps):
            rules += _normed(f"{here}.{larger + 2 * i}", f"{there}.{2 + i}.0", f"{there}.{2 + i}.1", transposed=True)
        return [*rules, *_normed(f"{here}.{larger + 2 * steps}", f"{there}.{2 + steps}", f"{there}.{3 + steps}")]


def _block(here: str, there: str) -> list[Rule]:
    return [
        *_normed(f"{here}.layers.0", f"{there}.layers.0", f"{there}.layers.1", bias=False),
        *_normed(f"{here}.layers.2", f"{there}.layers.3", f"{there}.layers.4", bias=False),
        Rule(f"{here}.alpha", (f"{there}.alpha",)),
    ]


def _normed(here: str, there: str, norm: str, *, transposed: bool = False, bias: bool = True) -> list[Rule]:
    """A convolution and the batch norm behind it."""
    of_norm = tuple(f"{norm}.{name}" for name in _NORM)
    shift: Callable[..., Tensor] = _shift if bias else _shift_of_none
    return [
        Rule(f"{here}.weight", (f"{there}.weight", *of_norm), _scaled_transposed if transposed else _scaled),
        Rule(f"{here}.bias", (*((f"{there}.bias",) if bias else ()), *of_norm), shift),
    ]


# --- from tensors to tensors ----------------------------------------------------------------------------------------


def _scaled(weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of `[outputs, ...]`."""
    return weight * _gain(scale, variance).view(-1, *[1] * (weight.dim() - 1))


def _scaled_transposed(weight: Tensor, *norm: Tensor) -> Tensor:
    """Of `[inputs, outputs, ...]`."""
    return _scaled(weight.transpose(0, 1), *norm).transpose(0, 1)


def _shift(bias: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (bias - mean) * _gain(scale, variance) + shift


def _shift_of_none(scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return _shift(torch.zeros_like(mean), scale, shift, mean, variance)


def _gain(scale: Tensor, variance: Tensor) -> Tensor:
    return scale / torch.sqrt(variance + _EPSILON)


def _turned(weight: Tensor, own: int) -> Tensor:
    """The first `own` input channels, which are the level's, behind those of coarser levels."""
    return torch.cat([weight[:, own:], weight[:, :own]], dim=1)
