"""Tensors from a file into a model: all of them, or an error that names one and the likely cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hvq.errors import CheckpointError

# What wrappers put before the names of a module's tensors.
_WRAPPERS = {
    "module.": "of DistributedDataParallel or DataParallel",
    "_orig_mod.": "of torch.compile",
    "_fsdp_wrapped_module.": "of FullyShardedDataParallel",
}
# Of which coarser level a prior has tensors, and which levels an autoencoder has: the name follows.
_COARSER, _LEVEL = ("condition.embeddings.", "condition.readers."), "levels."
_MISMATCH = "weights and configuration do not belong together"


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], where: Path, what: str) -> None:
    """Fill a model with tensors, all of them.

    Args:
        model: whose tensors are written to.
        tensors: by name, as `state_dict` names them.
        where: they come from, for the error.
        what: they are of ("prior").

    Raises:
        CheckpointError: which names the first tensor that is missing, unknown, or of another shape, and says what is
            likely to have happened.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    received = {name: tensor.shape for name, tensor in tensors.items()}
    if fault := _fault(expected, received):
        raise CheckpointError(f"{what} at {where} {fault}; {likely_cause(expected, received)}")
    model.load_state_dict(tensors)


def load_widened(model: nn.Module, tensors: Mapping[str, Tensor], where: Path, what: str) -> None:
    """The same without loss, of weights in any precision: float32 holds those in half precision, float64 takes itself.

    Args:
        model: in float32; it becomes float64 where one of the tensors is.
        tensors: as above.
        where: as above.
        what: as above.
    """
    if any(tensor.dtype == torch.float64 for tensor in tensors.values()):
        model.double()
    load_state(model, tensors, where, what)


Shapes = Mapping[str, Sequence[int]]


def _fault(expected: Shapes, received: Shapes) -> str | None:
    if missing := sorted(expected.keys() - received.keys()):
        return f"lacks the tensor {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
    if extra := sorted(received.keys() - expected.keys()):
        return f"has the unknown tensor {extra[0]}" + f" and {len(extra) - 1} more" * (len(extra) > 1)
    if misshapen := _misshapen(expected, received):
        name = misshapen[0]
        return f"has {name} of shape {list(received[name])}, where the model has {list(expected[name])}"
    return None


def _misshapen(expected: Shapes, received: Shapes) -> list[str]:
    return [name for name in received if name in expected and tuple(received[name]) != tuple(expected[name])]


def likely_cause(expected: Shapes, received: Shapes) -> str:
    """What is likely to have happened where weights do not fit, from names and shapes alone.

    Args:
        expected: shapes of the model's tensors, by name.
        received: those of the file.

    >>> likely_cause({"quantizer.vectors": (7, 3)}, {"quantizer.vectors": (7, 5)})
    'the weights are of code dimension 5, and the configuration says 3'
    """
    return (
        _wrapped(expected, received)
        or _other_kind(expected, received)
        or _other_levels(expected, received)
        or _other_codebook(expected, received)
        or _MISMATCH
    )


def _wrapped(expected: Shapes, received: Shapes) -> str:
    for prefix, wrapper in _WRAPPERS.items():
        plain = {name.replace(prefix, "") for name in received}
        if len(plain & expected.keys()) > len(received.keys() & expected.keys()):
            return f"the names hold {prefix}, which is {wrapper}: save the module inside"
    return ""


def _other_kind(expected: Shapes, received: Shapes) -> str:
    if received.keys() & expected.keys():
        return ""
    return "no tensor has a name of this model's: the weights are of another kind of model"


def _other_levels(expected: Shapes, received: Shapes) -> str:
    """Of priors, those that they are conditioned on; of autoencoders, those that they have."""
    has, wants = _names_after(_COARSER, received), _names_after(_COARSER, expected)
    if has != wants:
        return (
            f"the weights are of a prior of another level: they are conditioned on {_listed(has)}, and the "
            f"configuration's level on {_listed(wants)}"
        )
    has, wants = _names_after((_LEVEL,), received), _names_after((_LEVEL,), expected)
    if has != wants:
        return (
            f"the weights are of an autoencoder of levels {_listed(has)}, and the configuration's of {_listed(wants)}"
        )
    return ""


def _names_after(prefixes: Sequence[str], names: Shapes) -> list[str]:
    found = [name.removeprefix(p).split(".")[0] for name in names for p in prefixes if name.startswith(p)]
    return sorted(set(found))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _other_codebook(expected: Shapes, received: Shapes) -> str:
    """Of a codebook [K, D] and of the logits of a prior, K is the first axis."""
    for name in _misshapen(expected, received):
        has, wants = received[name], expected[name]
        if len(has) != len(wants):
            continue
        codebook = name.split(".")[-1] in ("vectors", "fixed_vectors")
        if codebook and has[1:] != wants[1:]:
            return f"the weights are of code dimension {has[1]}, and the configuration says {wants[1]}"
        if codebook or name.startswith("head.outputs."):
            return f"the weights are of codebook size {has[0]}, and the configuration says {wants[0]}"
    return ""
