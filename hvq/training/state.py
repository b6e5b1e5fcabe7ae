"""What training has come to, as tensors by name: gathered to save it, and put back.

Everything here is called by all processes together, since a model may lie in parts on several of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hvq.errors import CheckpointError
from hvq.storage.models import load_state
from hvq.training.optimization import Optimization
from hvq.training.sharding import as_shard, as_shards, gather, reshard

KEPT = "kept"
"""The part of what is kept beside the model."""


def gather_state(optimization: Optimization, kept: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Copies on the CPU of the model's tensors, its averaged weights, and the optimizer's moments, by part.

    Args:
        optimization: what is saved.
        kept: further tensors, a part of their own.

    Returns:
        Whole tensors, however the model lies, on the main process; none on the others.
    """
    reshard(optimization.model)
    parts = {
        "model": optimization.model.state_dict(),
        "average": optimization.average.tensors,
        "optimizer": optimizer_tensors(optimization.model, optimization.optimizer),
        KEPT: kept,
    }
    keep = optimization.accelerator.is_main_process
    return {part: gather(tensors, keep=keep) for part, tensors in parts.items()}


def restore_state(
    optimization: Optimization, parts: Mapping[str, Mapping[str, Tensor]], where: Path, what: str
) -> None:
    """Put back what `gather_state` gave, but for the further tensors; every process has read it.

    Args:
        optimization: of the same model and settings.
        parts: whole tensors by part.
        where: they come from, for the error.
        what: they are, for the error ("training checkpoint").

    Raises:
        CheckpointError: which names a tensor that is missing, unknown, or of another shape.
    """
    reshard(optimization.model)
    model = optimization.model
    load_state(model, as_shards(parts["model"], model.state_dict()), where, what)
    _require_names(optimization.average.tensors, parts["average"], where, f"average of the {what}")
    for name, tensor in optimization.average.tensors.items():
        tensor.copy_(as_shard(parts["average"][name], tensor))
    restore_optimizer(model, optimization.optimizer, parts["optimizer"], where, what)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of a model's optimizer as `<moment>/<parameter name>`."""
    return {
        f"{moment}/{name}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], where: Path, what: str
) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        moment, _, name = key.partition("/")
        if name not in parameters:
            raise CheckpointError(f"{what} at {where} has {key} of the optimizer, and the model has no such parameter")
        parameter = parameters[name]
        # AdamW counts its steps in a tensor on the CPU.
        is_moment = tensor.shape == parameter.shape
        moved = as_shard(tensor.to(parameter.device), parameter) if is_moment else tensor
        # A copy: what was read may be mapped onto a file that goes when there are newer ones.
        optimizer.state[parameter][moment] = moved.clone()


def _require_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: Path, what: str) -> None:
    if differing := sorted(expected.keys() ^ found.keys()):
        state = "is missing" if differing[0] in expected else "is unknown"
        raise CheckpointError(f"{what} at {where} does not belong to this model: {differing[0]} {state}")
