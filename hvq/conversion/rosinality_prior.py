"""The PixelSNAIL priors of rosinality/vq-vae-2-pytorch, of the top and of the bottom.

They have weight norms, one-hot planes and masks where `hvq.priors` has plain weights, tables, and kernels without what
a mask would cancel. All of that is folded into the weights, once, so that logits are the same but for rounding:

- g v / |v| becomes the weight, with v zero where the original sets it to zero before every forward;
- the first layer's two convolutions of one-hot planes become a table for each tap. Both outputs are shifted, behind
  which zeros and no bias come in; so each bias goes into the table of the tap next to the zeros' place, which sees a
  code wherever the bias is there;
- a residual convolution there does not see its own position: its tap is zero;
- the bias of what attention adds to a residual block goes into that of the block's first convolution;
- what the original does not have, the class and the code at the end of the row above, adds zero.

Letters: K codebook size, E channels, k kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.config_priors import PixelSNAILPriorConfig
from hvq.conversion.tensors import ForeignCheckpoint, Rule, count, fill, require_names, shape_of
from hvq.priors import Prior, build_prior

KIND = "rosinality-pixelsnail"
SIGNATURE = ("horizontal.conv.conv.weight_v", "background")
"""Names by which a checkpoint of this kind is known."""

# Not to be seen in any shape; the original's constructor has it as a default that its scripts keep.
_HEADS = 8


@dataclass(frozen=True)
class ConvertedPrior:
    """A prior, and what belongs into its description.

    Attributes:
        model: in evaluation mode.
        config: that it is built from.
        level: "top", or "bottom" where it is conditioned on the top.
        codebook_size: K.
        coarser: codebook sizes of the coarser levels.
        grid: (h, w).
    """

    model: Prior
    config: PixelSNAILPriorConfig
    level: str
    codebook_size: int
    coarser: dict[str, int]
    grid: tuple[int, int]


def convert_rosinality_prior(checkpoint: ForeignCheckpoint) -> ConvertedPrior:
    """A prior whose logits equal the original's.

    Args:
        checkpoint: with the state dict of its `PixelSNAIL`, whose sizes are read from the shapes.

    Raises:
        CheckpointError: which names the first tensors that are missing or not understood.
    """
    tensors = checkpoint.tensors
    codebook_size = shape_of(tensors, "horizontal.conv.conv.weight_v", 4, KIND)[1]
    conditioned = "cond_resnet.blocks.0.conv.weight_v" in tensors
    coarser = {"top": codebook_size} if conditioned else {}
    config = _read_config(tensors, dropout=float(checkpoint.arguments.get("dropout", 0.1)))
    model = build_prior(config, codebook_size=codebook_size, coarser=coarser)
    rules = _rules(config, conditioned)
    require_names(tensors, list(dict.fromkeys(["background", *(s for rule in rules for s in rule.sources)])), KIND)
    for parameter in _without_counterpart(model, conditioned):
        nn.init.zeros_(parameter)
    fill(model, rules, tensors, KIND)
    grid = shape_of(tensors, "background", 4, KIND)[2:]
    return ConvertedPrior(
        model.eval(), config, "bottom" if conditioned else "top", codebook_size, coarser, (grid[0], grid[1])
    )


def _read_config(tensors: Mapping[str, Tensor], dropout: float) -> PixelSNAILPriorConfig:
    first = "blocks.0.resblocks.0.conv1.conv.conv.weight_v"
    residual_width, width, kernel, _ = shape_of(tensors, first, 4, KIND)
    conditioned = "cond_resnet.blocks.0.conv.weight_v" in tensors
    return PixelSNAILPriorConfig(
        width=width,
        residual_width=residual_width,
        kernel=kernel,
        blocks=count(tensors, "blocks.{}.resblocks.0.conv1.conv.conv.weight_v"),
        residual_blocks=count(tensors, "blocks.0.resblocks.{}.conv1.conv.conv.weight_v"),
        output_blocks=count(tensors, "out.{}.conv1.conv.weight_v"),
        attention="blocks.0.causal_attention.query.weight_v" in tensors,
        heads=_HEADS,
        attend_to_self=False,
        # One channel is the least that there can be, where there is nothing to be told.
        context_width=shape_of(tensors, "cond_resnet.blocks.0.conv.weight_v", 4, KIND)[0] if conditioned else 1,
        context_blocks=count(tensors, "cond_resnet.blocks.{}.conv1.conv.weight_v", first=1),
        gated_context=True,
        dropout=dropout,
    )


def _without_counterpart(model: Prior, conditioned: bool) -> list[nn.Parameter]:
    parts = ["line_start.", "condition.classes."]
    return [
        parameter
        for name, parameter in model.named_parameters()
        if any(name.startswith(part) for part in parts) or (not conditioned and ".context." in name)
    ]


# --- from names to names --------------------------------------------------------------------------------------------


def _rules(config: PixelSNAILPriorConfig, conditioned: bool) -> list[Rule]:
    first = [
        f"{name}.conv.conv.{part}" for name in ("horizontal", "vertical") for part in ("weight_g", "weight_v", "bias")
    ]
    rules = [Rule("inputs.table", tuple(first), _tap_tables)]
    for i in range(config.blocks):
        rules += _block(f"blocks.{i}", config, conditioned)
    for i in range(config.output_blocks):
        rules += _Residual(f"outputs.{i}", f"out.{i}").rules()
    # An activation stands between.
    rules += _linear("head.outputs.0", f"out.{config.output_blocks + 1}.conv")
    return rules + (_condition(config) if conditioned else [])


def _block(name: str, config: PixelSNAILPriorConfig, conditioned: bool) -> list[Rule]:
    rules = []
    for j in range(config.residual_blocks):
        residual = _Residual(f"{name}.residuals.{j}", f"{name}.resblocks.{j}", causal=True, conditioned=conditioned)
        rules += residual.rules()
    if not config.attention:
        return rules + _linear(f"{name}.output", f"{name}.out.conv")
    attention, there = f"{name}.attention", f"{name}.causal_attention"
    rules += _Residual(f"{attention}.key_residual", f"{name}.key_resblock").rules()
    rules += _Residual(f"{attention}.query_residual", f"{name}.query_resblock").rules()
    rules += _Residual(f"{attention}.output", f"{name}.out_resblock", auxiliary=True).rules()
    rules += _linear(f"{attention}.query", f"{there}.query")
    return [
        *rules,
        Rule(f"{attention}.key_value.weight", (*_norm(f"{there}.key"), *_norm(f"{there}.value")), _both_weights),
        Rule(f"{attention}.key_value.bias", (f"{there}.key.bias", f"{there}.value.bias"), _joined),
    ]


def _condition(config: PixelSNAILPriorConfig) -> list[Rule]:
    there = "cond_resnet.blocks.0.conv"
    rules = [Rule("condition.embeddings.top.taps.table", (*_norm(there), f"{there}.bias"), _all_tap_tables)]
    for i in range(config.context_blocks):
        for here, conv in (("first", "conv1"), ("second", "conv2")):
            there = f"cond_resnet.blocks.{i + 1}.{conv}.conv"
            rules += _plain(f"condition.readers.top.{i}.{here}", there)
    return rules


@dataclass(frozen=True)
class _Residual:
    """A gated residual block: its name here and there, and what it has."""

    here: str
    there: str
    causal: bool = False
    conditioned: bool = False
    auxiliary: bool = False

    def rules(self) -> list[Rule]:
        rules = self._convolution("first", "conv1", ("aux_conv.conv.bias",) if self.auxiliary else ())
        rules += self._convolution("second", "conv2", ())
        if self.conditioned:
            rules.append(Rule(f"{self.here}.context.weight", _norm(f"{self.there}.condition.conv"), _matrix))
        if self.auxiliary:
            rules.append(Rule(f"{self.here}.auxiliary.weight", _norm(f"{self.there}.aux_conv.conv"), _matrix))
        return rules

    def _convolution(self, here: str, there: str, more_biases: tuple[str, ...]) -> list[Rule]:
        target, source = f"{self.here}.{here}", f"{self.there}.{there}.conv" + ".conv" * self.causal
        biases = (f"{source}.bias", *(f"{self.there}.{name}" for name in more_biases))
        rules = [
            Rule(f"{target}.own.convolution.weight", _norm(source), _own_row if self.causal else _weight),
            Rule(f"{target}.own.convolution.bias", biases, _total),
        ]
        if self.causal:
            rules.append(Rule(f"{target}.above.convolution.weight", _norm(source), _rows_above))
        return rules


def _norm(name: str) -> tuple[str, str]:
    return f"{name}.weight_g", f"{name}.weight_v"


def _plain(here: str, there: str) -> list[Rule]:
    return [Rule(f"{here}.weight", _norm(there), _weight), Rule(f"{here}.bias", (f"{there}.bias",))]


def _linear(here: str, there: str) -> list[Rule]:
    return [Rule(f"{here}.weight", _norm(there), _matrix), Rule(f"{here}.bias", (f"{there}.bias",))]


# --- from tensors to tensors ----------------------------------------------------------------------------------------


def _weight(g: Tensor, v: Tensor) -> Tensor:
    """Weight normalisation (arXiv 1602.07868), equation (2)."""
    return g * v / torch.linalg.vector_norm(v.flatten(1), dim=1).view(-1, *[1] * (v.dim() - 1))


def _matrix(g: Tensor, v: Tensor) -> Tensor:
    return _weight(g, v).flatten(1)


def _both_weights(key_g: Tensor, key_v: Tensor, value_g: Tensor, value_v: Tensor) -> Tensor:
    return torch.cat([_weight(key_g, key_v), _weight(value_g, value_v)])


def _joined(*biases: Tensor) -> Tensor:
    return torch.cat(biases)


def _total(*biases: Tensor) -> Tensor:
    return torch.stack(biases).sum(dim=0)


def _causal_weight(g: Tensor, v: Tensor) -> Tensor:
    """`[.., k, k]`, the last row up to the own position, which is not seen, nor counted in the norm."""
    reach = v.shape[3] // 2
    seen = torch.ones_like(v)
    seen[:, :, -1, reach:] = 0
    return _weight(g, v * seen)


def _own_row(g: Tensor, v: Tensor) -> Tensor:
    return _causal_weight(g, v)[:, :, -1:, : v.shape[3] // 2 + 1]


def _rows_above(g: Tensor, v: Tensor) -> Tensor:
    return _causal_weight(g, v)[:, :, :-1]


def _tap_tables(h_g: Tensor, h_v: Tensor, h_bias: Tensor, v_g: Tensor, v_v: Tensor, v_bias: Tensor) -> Tensor:
    """`[taps, K + 1, E]` of the rows above, k wide, and of k // 2 columns to the left, k // 2 + 1 high."""
    above, before = _weight(h_g, h_v), _weight(v_g, v_v)
    reach = above.shape[2]
    # The own row of the first does not see itself, nor what comes later; its columns are those of the second.
    kernel = functional.pad(above, (0, 0, 0, 1)) + functional.pad(before, (0, above.shape[3] - reach))
    kernel[:, :, reach - 1, reach] += h_bias.unsqueeze(1)
    kernel[:, :, reach, reach - 1] += v_bias.unsqueeze(1)
    taps = [*kernel[:, :, :reach].flatten(2).unbind(dim=2), *kernel[:, :, reach, :reach].unbind(dim=2)]
    return _tables(torch.stack(taps))


def _all_tap_tables(g: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`[9, K + 1, E]` of 3x3 codes, all of which are known."""
    kernel = _weight(g, v)
    kernel[:, :, 1, 1] += bias.unsqueeze(1)
    return _tables(kernel.flatten(2).movedim(2, 0))


def _tables(taps: Tensor) -> Tensor:
    """`[taps, K + 1, E]` of `[taps, E, K]`: the last row, of what lies outside the grid, is zero."""
    return functional.pad(taps.transpose(1, 2), (0, 0, 0, 1))
