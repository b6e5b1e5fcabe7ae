"""What training has come to, as tensors by name: gathered to save it, and put back.

Everything here is called by all processes together, since a model may lie in parts on several of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hvq.errors import CheckpointError
from hvq.storage.models import load_state
from hvq.training.optimization import Optimization

PARTS = ("model", "average", "optimizer")
"""What `gather_state` gives; each is a file of a training checkpoint."""


def gather_state(optimization: Optimization) -> dict[str, dict[str, Tensor]]:
    """Copies on the CPU of the model's tensors, its averaged weights, and the optimizer's moments, by part."""
    parts = {
        "model": optimization.model.state_dict(),
        "average": optimization.average.tensors,
        "optimizer": optimizer_tensors(optimization),
    }
    return {part: {name: _copied(tensor) for name, tensor in tensors.items()} for part, tensors in parts.items()}


def restore_state(
    optimization: Optimization, parts: Mapping[str, Mapping[str, Tensor]], where: Path, what: str
) -> None:
    """Put back what `gather_state` gave.

    Args:
        optimization: of the same model and settings.
        parts: tensors by part.
        where: they come from, for the error.
        what: they are, for the error ("training checkpoint").

    Raises:
        CheckpointError: which names a tensor that is missing, unknown, or of another shape.
    """
    load_state(optimization.model, dict(parts["model"]), where, what)
    _require_names(optimization.average.tensors, parts["average"], where, f"average of the {what}")
    for name, tensor in optimization.average.tensors.items():
        tensor.copy_(parts["average"][name])
    restore_optimizer(optimization, parts["optimizer"], where, what)


def optimizer_tensors(optimization: Optimization) -> dict[str, Tensor]:
    """The optimizer's state as `<moment>/<parameter name>`."""
    return {
        f"{moment}/{name}": torch.as_tensor(value)
        for name, parameter in optimization.model.named_parameters()
        for moment, value in optimization.optimizer.state[parameter].items()
    }


def restore_optimizer(optimization: Optimization, tensors: Mapping[str, Tensor], where: Path, what: str) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = dict(optimization.model.named_parameters())
    for key, tensor in tensors.items():
        moment, _, name = key.partition("/")
        if name not in parameters:
            raise CheckpointError(f"{what} at {where} has {key} of the optimizer, and the model has no such parameter")
        parameter = parameters[name]
        # AdamW counts its steps in a tensor on the CPU.
        device = parameter.device if tensor.shape == parameter.shape else tensor.device
        optimization.optimizer.state[parameter][moment] = tensor.to(device)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _require_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: Path, what: str) -> None:
    if differing := sorted(expected.keys() ^ found.keys()):
        state = "is missing" if differing[0] in expected else "is unknown"
        raise CheckpointError(f"{what} at {where} does not belong to this model: {differing[0]} {state}")
