"""State dicts of other projects: what they are wrapped in, and how their tensors become those of a model here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvq.errors import CheckpointError
from hvq.quantizers import Codebook

# Under which names training scripts put a state dict beside other things.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net")
# What DataParallel, and torch.compile, put before every name.
_PREFIXES = ("module.", "_orig_mod.")

CODEBOOK_TENSORS = ("embed", "cluster_size", "embed_avg")
"""What implementations keep of a codebook that learns by moving averages: vectors, counts, sums."""


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a file of another project holds.

    Attributes:
        tensors: by name, without the prefixes of wrapping modules.
        arguments: of the script that wrote it, where it noted them.
    """

    tensors: dict[str, Tensor]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """How one tensor of a model here is made.

    Attributes:
        target: its name.
        sources: names of the foreign tensors that it is made of.
        make: from these, in order, to the tensor; by default the only one as it is.
    """

    target: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor


def unwrap(content: object) -> ForeignCheckpoint:
    """The state dict in what a file holds, bare or beside other things, as in `{"model": ..., "args": ...}`.

    Args:
        content: as a reader of plain tensors gives it.

    Raises:
        CheckpointError: where there is none.

    >>> unwrap({"model": {"module.weight": torch.zeros(3)}, "epoch": 7}).tensors
    {'weight': tensor([0., 0., 0.])}
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"a checkpoint must be a mapping from names to tensors; it is a {type(content).__name__}: save the "
            "model's state_dict() instead"
        )
    inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content)
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"a checkpoint must hold tensors, bare or under {', '.join(_WRAPPERS)}; "
            f"it holds {', '.join(list(map(str, inner))[:5]) or 'nothing'}"
        )
    arguments = content.get("args")
    return ForeignCheckpoint(
        _without_prefixes(tensors), dict(vars(arguments)) if isinstance(arguments, Namespace) else {}
    )


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _without_prefixes({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def shape_of(tensors: Mapping[str, Tensor], name: str, axes: int, kind: str) -> tuple[int, ...]:
    """The shape of a tensor that sizes are read from.

    Raises:
        CheckpointError: where it is missing, or has another number of axes.
    """
    if name not in tensors:
        raise misfit(kind, missing=[name], extra=[])
    if tensors[name].dim() != axes:
        raise CheckpointError(
            f"a checkpoint of {kind} must have {name} with {axes} axes; it has shape {list(tensors[name].shape)}: it "
            "is of another model"
        )
    return tuple(tensors[name].shape)


def count(tensors: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many of a row of modules there are.

    Args:
        tensors: by name.
        pattern: of a name, with {} in the place of the number.
        first: the number of the first.

    >>> count({"a.2.b": torch.zeros(1), "a.3.b": torch.zeros(1)}, "a.{}.b", first=2)
    2
    """
    number = first
    while pattern.format(number) in tensors:
        number += 1
    return number - first


def require_names(tensors: Mapping[str, Tensor], expected: Collection[str], kind: str) -> None:
    """Refuse a checkpoint that lacks a tensor, or has one that is not understood.

    Raises:
        CheckpointError: which names the first of them, and the likely cause.
    """
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in set(expected)]
    if missing or extra:
        raise misfit(kind, missing, extra)


def misfit(kind: str, missing: Sequence[str], extra: Sequence[str]) -> CheckpointError:
    """The refusal of a checkpoint whose names are not those of a kind."""
    faults = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has the unknown {_listed(extra)}"] * bool(extra)
    if missing and extra:
        cause = "it is of another model, or its code was changed before it was trained"
    elif missing:
        cause = "the file holds a part of the model, or its code was changed before it was trained"
    else:
        cause = "parts were added to the model before it was trained, or it is a newer version of it"
    return CheckpointError(f"the checkpoint does not fit {kind}: it {' and '.join(faults)}; {cause}")


def adopt(codebook: Codebook, name: str, vectors: Tensor, counts: Tensor, *, initialized: bool = True) -> None:
    """Let a codebook go on from a foreign one.

    Args:
        codebook: of a model here.
        name: of the foreign one, for the error.
        vectors: `[K, D]`.
        counts: `[K]`, of its moving averages.
        initialized: whether it has seen latents.

    Raises:
        CheckpointError: where shapes are others.
    """
    size, dimension = codebook.vectors.shape
    if vectors.shape != (size, dimension) or counts.shape != (size,):
        raise CheckpointError(
            f"{name} must have {size} vectors of length {dimension}, as other tensors of the checkpoint say, and as "
            f"many counts; it has vectors {list(vectors.shape)} and counts {list(counts.shape)}: its code was changed "
            "before it was trained"
        )
    codebook.adopt(vectors, counts, initialized=initialized)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@torch.no_grad()
def fill(model: nn.Module, rules: Sequence[Rule], tensors: Mapping[str, Tensor], kind: str) -> None:
    """Fill a model's tensors by rules; those without a rule stay as they are.

    Raises:
        CheckpointError: which names the first foreign tensor whose shape does not fit.
    """
    state = model.state_dict()
    for rule in rules:
        target = state[rule.target]
        sources = [tensors[name].to(target.dtype) for name in rule.sources]
        try:
            made = rule.make(*sources)
        except RuntimeError:
            made = None
        if made is None or made.shape != target.shape:
            shapes = ", ".join(f"{name} of shape {list(tensors[name].shape)}" for name in rule.sources)
            raise CheckpointError(
                f"the checkpoint does not fit {kind}: it has {shapes}, which cannot become the {list(target.shape)} "
                "that its other tensors ask for; its code was changed before it was trained"
            )
        target.copy_(made)
