"""The codebooks of vector-quantize-pytorch and of encodec, alone or within a larger model.

Letters: D code dimension, K codebook size, G codes per position, d dimensions in which codes are chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvq.config_quantizers import ResidualQuantizerConfig, VectorQuantizerConfig
from hvq.conversion.tensors import adopt, misfit, shape_of
from hvq.errors import CheckpointError
from hvq.quantizers import Codebook, Quantizer
from hvq.quantizers.build import build_quantizer

KIND = "codebook"
# `layers.3.` of a residual quantizer, `_codebook` of vector-quantize-pytorch and encodec, `codebook` of transformers.
_VECTORS = re.compile(r"(?P<part>.*?)(?:layers\.(?P<layer>\d+)\.)?(?P<codebook>_codebook|codebook)\.embed")
# Averages are made of vectors and counts; these are not needed.
_KNOWN = {"embed", "cluster_size", "embed_avg", "initted", "inited"}
_PROJECTIONS = ("project_in.weight", "project_in.bias", "project_out.weight", "project_out.bias")


_Config = VectorQuantizerConfig | ResidualQuantizerConfig


@dataclass(frozen=True)
class ConvertedQuantizer:
    """A quantizer, and what it is built from.

    Attributes:
        model: in evaluation mode.
        config: of its kind.
        left_out: how many tensors of the file belong to other parts of a larger model.
    """

    model: Quantizer
    config: _Config
    left_out: int


def has_codebooks(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is a codebook among the tensors.

    >>> has_codebooks({"quantizer.layers.0.codebook.embed": torch.zeros(5, 3)})
    True
    """
    return any(_VECTORS.fullmatch(name) for name in tensors)


def convert_codebooks(tensors: Mapping[str, Tensor]) -> ConvertedQuantizer:
    """A vector quantizer, or a residual one of several codebooks in a row, that gives the original's codes.

    Codebooks whose vectors all have length one are taken for those of the cosine metric; the codes would be the same
    by the Euclidean one. A residual quantizer whose codebooks are all equal shares one. How many heads share a codebook
    without a projection is not to be seen from the tensors, and taken for one. Axes are those of this project: latents
    `[B, D, *grid]`, codes `[B, *grid]` or `[B, *grid, G]`.

    Args:
        tensors: the state dict of `VectorQuantize`, of `ResidualVQ`, or of a model that has one of them, such as
            encodec's.

    Raises:
        CheckpointError: where there is no quantizer or more than one, or it has parts without counterpart.
    """
    part, names = _find(tensors)
    own = {name.removeprefix(part): tensor for name, tensor in tensors.items() if _belongs(name, part)}
    names = [name.removeprefix(part) for name in names]
    _require_known(own, names)
    residual = names[0].startswith("layers.")
    model, config = _residual(own, names) if residual and len(names) > 1 else _single(own, names[0])
    return ConvertedQuantizer(model, config, left_out=len(tensors) - len(own))


def _find(tensors: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """What stands before the names of the one quantizer, and its codebooks' names, in order."""
    found: dict[str, dict[int, str]] = {}
    for name in tensors:
        if match := _VECTORS.fullmatch(name):
            found.setdefault(match["part"], {})[int(match["layer"] or 0)] = name
    if not found:
        raise misfit(KIND, missing=["_codebook.embed"], extra=list(tensors))
    if len(found) > 1:
        raise CheckpointError(
            f"a checkpoint must have one quantizer; it has {len(found)}, at {', '.join(sorted(found))}: save the "
            "state_dict() of each in a file of its own"
        )
    ((part, layers),) = found.items()
    return part, [layers[i] for i in sorted(layers)]


def _belongs(name: str, part: str) -> bool:
    """Whether a tensor is the quantizer's; one at the top of a model has the names of other parts beside its own."""
    if not name.startswith(part):
        return False
    inner = name.removeprefix(part)
    return bool(part) or inner.split(".")[0] in ("layers", "_codebook", "codebook", "project_in", "project_out", "mlps")


def _require_known(own: Mapping[str, Tensor], names: list[str]) -> None:
    codebooks = [name.removesuffix("embed") for name in names]
    known = {codebook + tensor for codebook in codebooks for tensor in _KNOWN} | set(_PROJECTIONS)
    extra = [name for name in own if name not in known]
    missing = [codebook + "cluster_size" for codebook in codebooks if codebook + "cluster_size" not in own]
    if extra or missing:
        raise misfit("vector-quantize-pytorch or encodec", missing, extra)


# --- one codebook, or one for each head -----------------------------------------------------------------------------


def _single(own: Mapping[str, Tensor], name: str) -> tuple[Quantizer, _Config]:
    vectors = _heads(own, name)
    projected = "project_in.weight" in own
    inner, code_dimension = (
        shape_of(own, "project_in.weight", 2, KIND) if projected else (len(vectors) * vectors.shape[2],) * 2
    )
    # Heads that share one codebook are told by the projection alone.
    heads = inner // vectors.shape[2]
    config = VectorQuantizerConfig(
        heads=heads,
        projection_dimension=inner if projected else None,
        metric="cosine" if _on_sphere(vectors) else "euclidean",
    )
    model = build_quantizer(config, codebook_size=vectors.shape[1], code_dimension=code_dimension)
    for i, codebook in enumerate(model.codebooks):
        _adopt(codebook, own, name, head=i if len(vectors) > 1 else 0)
    if projected:
        _take_projections(model, own)
    return model.eval(), config


def _heads(own: Mapping[str, Tensor], name: str) -> Tensor:
    """Vectors `[heads, K, d]`; of encodec, `[K, d]`."""
    vectors = own[name]
    if vectors.dim() not in (2, 3):
        raise CheckpointError(f"vectors must be [K, D] or [heads, K, D]; {name} has shape {list(vectors.shape)}")
    return vectors if vectors.dim() == 3 else vectors.unsqueeze(0)


def _on_sphere(vectors: Tensor) -> bool:
    lengths = torch.linalg.vector_norm(vectors.double(), dim=-1)
    return vectors.shape[-1] > 1 and torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4)


def _adopt(codebook: Codebook, own: Mapping[str, Tensor], name: str, head: int = 0) -> None:
    there = name.removesuffix("embed")
    counts, flag = own[f"{there}cluster_size"], own.get(f"{there}initted", own.get(f"{there}inited"))
    vectors, counts = _heads(own, name)[head], counts if counts.dim() == 1 else counts[head]
    adopt(codebook, there.rstrip("."), vectors, counts, initialized=flag is None or bool(flag))


@torch.no_grad()
def _take_projections(model: Any, own: Mapping[str, Tensor]) -> None:
    for name in _PROJECTIONS:
        module, tensor = name.split(".")
        if name not in own:
            raise misfit("vector-quantize-pytorch", missing=[name], extra=[])
        getattr(getattr(model, module), tensor).copy_(own[name])


# --- several in a row -----------------------------------------------------------------------------------------------


def _residual(own: Mapping[str, Tensor], names: list[str]) -> tuple[Quantizer, _Config]:
    if projections := [name for name in _PROJECTIONS if name in own]:
        raise CheckpointError(
            f"a residual quantizer here has no projection; the checkpoint has {projections[0]}: put the projections "
            "into the encoder and the decoder around it, and save the layers alone"
        )
    shapes = {tuple(_heads(own, name).shape) for name in names}
    heads, size, dimension = max(shapes)
    if len(shapes) > 1 or heads > 1:
        raise CheckpointError(
            "the codebooks of a residual quantizer must be of one size, with one head each; those of the checkpoint "
            f"are {', '.join(map(str, sorted(shapes)))}"
        )
    shared = all(torch.equal(own[names[0]], own[name]) for name in names[1:])
    config = ResidualQuantizerConfig(num_quantizers=len(names), shared=shared)
    model = build_quantizer(config, codebook_size=size, code_dimension=dimension)
    for codebook, name in zip(model.codebooks, names[:1] if shared else names, strict=True):
        _adopt(codebook, own, name)
    return model.eval(), config
