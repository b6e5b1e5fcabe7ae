"""The halves of an autoencoder as programs of `torch.export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from hvq.errors import ConfigurationError
from hvq.export.description import Axis, Port

# What stands for the caller's choice while a program is made; lengths of 0 and 1 would be taken to be constant.
_EXAMPLES = {"batch": 2, "length": 3, "depth": 2, "height": 2, "width": 3}


def export_program(model: nn.Module, ports: Mapping[str, Port], what: str, *, joined: bool = False) -> ExportedProgram:
    """The program of a module.

    Args:
        model: called with its inputs in order, or with one mapping of them by name.
        ports: what they are; axes that are named may have other lengths than they have here.
        what: the module, for the error.
        joined: whether it is one mapping.

    Raises:
        ConfigurationError: where a module within cannot be followed, such as a network of one's own.
    """
    dims = {name: Dim(name, min=1) for name in _EXAMPLES}
    shapes = {name: {i: _dim(axis, dims) for i, axis in enumerate(port.shape)} for name, port in ports.items()}

    def arguments(by_name: dict[str, Any]) -> tuple[Any, ...]:
        return (by_name,) if joined else tuple(by_name.values())

    try:
        with torch.no_grad():
            return torch.export.export(model, arguments(examples(ports)), dynamic_shapes=arguments(shapes))
    except (UserError, GuardOnDataDependentSymNode) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"the {what} cannot be exported, for what it does hangs on the batch or the numbers in it: {reason}; let "
            "networks of your own do the same whatever they are given"
        ) from error


def examples(ports: Mapping[str, Port], **lengths: int) -> dict[str, Tensor]:
    """Random inputs by name, in the range of each.

    Args:
        ports: what the inputs are.
        lengths: of named axes, by name; small ones where none is given.

    >>> examples({"images": Port(dtype="float32", shape=("batch", 1, "4*height"), range=(0.0, 1.0))})["images"].shape
    torch.Size([2, 1, 8])
    """
    return {name: _example(port, {**_EXAMPLES, **lengths}) for name, port in ports.items()}


def _example(port: Port, lengths: Mapping[str, int]) -> Tensor:
    shape = [axis if isinstance(axis, int) else _of_name(axis, lengths) for axis in port.shape]
    low, high = port.range
    return torch.rand(shape) if port.dtype == "float32" else torch.randint(int(low), int(high) + 1, shape)


def _dim(axis: Axis, dims: Mapping[str, Any]) -> Any:
    return Dim.STATIC if isinstance(axis, int) else _of_name(axis, dims)


def _of_name(axis: str, values: Mapping[str, Any]) -> Any:
    """The value of an axis such as `8*height`, given that of `height`."""
    factor, _, name = axis.rpartition("*")
    return int(factor) * values[name] if factor else values[name]
