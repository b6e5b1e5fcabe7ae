"""Numbers with what they mean: what each part of an evaluation gives, and how parts are joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from hvq.distributed import Reduction
from hvq.evaluation.pretrained import WeightsMissing

Numbers = dict[str, Any]
Network = TypeVar("Network")


@dataclass(frozen=True)
class Measured:
    """A part of `metrics.json`.

    Attributes:
        numbers: plain, by name, in groups; None where a number cannot be had.
        about: by dotted name what a number or group means: split, number of samples, range, size, extractor; or why it
            cannot be had.
    """

    numbers: Numbers = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def joined(self, other: Measured) -> Measured:
        """Both; of groups that both have, all numbers.

        >>> Measured({"a": {"x": 1}}).joined(Measured({"a": {"y": 2}})).numbers
        {'a': {'x': 1, 'y': 2}}
        """
        numbers = dict(self.numbers)
        for name, value in other.numbers.items():
            both = isinstance(value, dict) and isinstance(numbers.get(name), dict)
            numbers[name] = {**numbers[name], **value} if both else value
        return Measured(numbers, {**self.about, **other.about})


def loaded_everywhere(
    load: Callable[[], Network], reduction: Reduction, device: torch.device
) -> tuple[Network | None, str]:
    """A pretrained network, and an empty text; or None, where some process has none, and why.

    Args:
        load: raises `WeightsMissing`.
        reduction: over the processes, which all go with the network or all without.
        device: of the processes.
    """
    network, reason = None, "it is not on the machines of all processes"
    try:
        network = load()
    except WeightsMissing as error:
        reason = str(error)
    have = int(reduction.sum(torch.tensor([int(network is not None)], device=device)))
    return (network, "") if have == reduction.size else (None, reason)
