"""The priors that benchmarks draw from and train: the project's own, and those that they are compared with.

`peer` is PixelSNAIL as https://github.com/rosinality/vq-vae-2-pytorch has it, read from a checkout.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hvq.priors import Condition, PixelCNNPrior, PixelSNAILPrior, Prior, TransformerPrior
from hvq.priors.embedding import CodeEmbedding
from hvq.priors.taps import CodeTaps

Grid = tuple[int, int]
KINDS: dict[str, type[Prior]] = {
    "pixelsnail": PixelSNAILPrior,
    "pixelcnn": PixelCNNPrior,
    "transformer": TransformerPrior,
}
CODEBOOK_SIZE = 512
PIXELSNAIL = {"width": 256, "residual_width": 256, "blocks": 4, "residual_blocks": 4, "kernel": 5}
# The sizes of public reimplementations of VQ-VAE-2, at 256x256 pixels, and others of as many parameters.
MODELS: dict[str, dict[str, Any]] = {
    "pixelsnail-top": {"kind": "pixelsnail", **PIXELSNAIL, "attention": True, "heads": 8},
    "pixelsnail-bottom": {"kind": "pixelsnail", **PIXELSNAIL, "attention": False, "context_blocks": 3},
    "pixelcnn": {"kind": "pixelcnn", "width": 384, "kernel": 5},
    "transformer-85m": {"kind": "transformer", "width": 896, "heads": 14, "key_value_heads": 1},
    "transformer-26m": {"kind": "transformer", "width": 512, "heads": 8, "layers": 8},
}
# Those whose number of layers follows from the parameters of another.
AS_LARGE_AS = {"pixelcnn": "pixelsnail-top", "transformer-85m": "pixelsnail-top"}
GRIDS: dict[str, Grid] = {
    "pixelsnail-top": (32, 32),
    "pixelsnail-bottom": (64, 64),
    "pixelcnn": (32, 32),
    "transformer-85m": (32, 32),
    "transformer-26m": (16, 16),
}
QUICK_GRIDS: dict[str, Grid] = dict.fromkeys(GRIDS, (4, 4)) | {"pixelsnail-bottom": (8, 8)}
# The level that `pixelsnail-bottom` is conditioned on has half as many rows and columns.
CONDITIONED = {"pixelsnail-bottom"}


# --- own models ------------------------------------------------------------------------------------------------------


def build_own(model: str, *, classes: int = 0) -> Prior:
    """One of `MODELS`, with fresh weights."""
    fields = fields_of(model)
    if model in AS_LARGE_AS:
        fields["layers"] = nearest_layers(model)
    return construct(fields, classes)


def fields_of(model: str) -> dict[str, Any]:
    """What its constructor is given, `kind` beside it."""
    coarser = {"top": CODEBOOK_SIZE} if model in CONDITIONED else {}
    return {"codebook_size": CODEBOOK_SIZE, "coarser": coarser, **MODELS[model]}


def construct(fields: Mapping[str, Any], classes: int = 0) -> Prior:
    """The prior that has these fields."""
    rest = {name: value for name, value in fields.items() if name != "kind"}
    return KINDS[fields["kind"]](**rest, num_classes=classes)


@functools.cache
def nearest_layers(model: str) -> int:
    """As many as give the parameters of the model that it is compared with."""
    target = parameters(on_meta(lambda: build_own(AS_LARGE_AS[model])))
    return nearest_size(lambda layers: on_meta(lambda: construct({**fields_of(model), "layers": layers})), target)


def nearest_size(build: Callable[[int], nn.Module], target: int) -> int:
    """The size at which a model, whose parameters grow by as many with each step, is nearest to `target` parameters.

    >>> nearest_size(lambda width: nn.Linear(9, width), 32)
    3
    """
    one, two = parameters(build(1)), parameters(build(2))
    return max(1, 1 + round((target - one) / (two - one)))


def on_meta(build: Callable[[], Any]) -> Any:
    """A model without memory, to be counted."""
    with torch.device("meta"):
        return build()


def condition_for(model: str, grid: Grid, batch: int, device: str) -> Condition:
    """Random codes of the coarser level, where there is one."""
    return Condition(codes={"top": coarser_codes(grid, batch, device)} if model in CONDITIONED else {})


def coarser_codes(grid: Grid, batch: int, device: str) -> Tensor:
    """Random codes of a level of half as many rows and columns."""
    return random_codes((grid[0] // 2, grid[1] // 2), batch, device, seed=1)


def random_codes(grid: Grid, batch: int, device: str, *, seed: int = 0) -> Tensor:
    """int64 `[B, h, w]`, the same at each call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (batch, *grid), generator=generator).to(device)


# --- counting --------------------------------------------------------------------------------------------------------


def parameters(model: nn.Module) -> int:
    """All of them."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_in_products(model: nn.Module) -> int:
    """Without tables, of which a step gathers a few rows."""
    tables: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding | CodeEmbedding):
            tables[id(module.weight)] = module.weight
        elif isinstance(module, CodeTaps) and module.maps is None:
            tables[id(module.table)] = module.table
    return parameters(model) - sum(table.numel() for table in tables.values())


# --- the peer --------------------------------------------------------------------------------------------------------


def reason_without_peer(directory: Path | None) -> str | None:
    """Why there is no peer; None where there is one."""
    if directory is None:
        return "--peer names no checkout of rosinality/vq-vae-2-pytorch"
    return None if (directory / "pixelsnail.py").exists() else f"there is no pixelsnail.py in {directory}"


@functools.cache
def _peer_module(directory: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_pixelsnail", directory / "pixelsnail.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def build_peer(model: str, grid: Grid, directory: Path) -> nn.Module:
    """The peer's PixelSNAIL of the size of one of `MODELS`, for a grid."""
    conditioned = {"n_cond_res_block": 3, "cond_res_channel": MODELS[model]["residual_width"]}
    return peer_pixelsnail(
        directory,
        grid,
        MODELS[model],
        codebook_size=CODEBOOK_SIZE,
        attention=MODELS[model]["attention"],
        **(conditioned if model in CONDITIONED else {}),
    )


def peer_pixelsnail(
    directory: Path, grid: Grid, fields: Mapping[str, Any], *, codebook_size: int, **options: Any
) -> nn.Module:
    """The peer's PixelSNAIL with the fields that the project's own has."""
    names = ("width", "kernel", "blocks", "residual_blocks", "residual_width")
    sizes = [fields[name] for name in names]
    with warnings.catch_warnings():
        # It uses a form of weight normalization that torch calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return _peer_module(directory).PixelSNAIL(list(grid), codebook_size, *sizes, **options)


def peer_inputs(model: str, grid: Grid, batch: int, device: str) -> dict[str, Tensor]:
    """What the peer's forward is given beside the codes."""
    return {"condition": coarser_codes(grid, batch, device)} if model in CONDITIONED else {}
