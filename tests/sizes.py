"""How much is held at once in one type of number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor, of those it counts, that any operation gives, in `values`."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def counts(self, tensor: Tensor) -> bool:
        """Whether the tensor is of the type that is looked for."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and look at what it gives."""
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and self.counts(leaf)]
        self.values = max(self.values, *sizes, 0)
        return result


class LargestFloat(_Largest):
    """Of tensors in floating point.

    >>> with LargestFloat() as largest:
    ...     _ = torch.zeros(7, dtype=torch.uint8).split(3)[0].float()
    >>> largest.values
    3
    """

    def counts(self, tensor: Tensor) -> bool:
        """Whether it is in floating point."""
        return tensor.is_floating_point()


class LargestBytes(_Largest):
    """Of tensors in bytes.

    >>> images = torch.zeros(7, dtype=torch.uint8)
    >>> with LargestBytes() as largest:
    ...     _ = images[torch.arange(3)].float()
    >>> largest.values
    3
    """

    def counts(self, tensor: Tensor) -> bool:
        """Whether it is in bytes."""
        return tensor.dtype == torch.uint8
