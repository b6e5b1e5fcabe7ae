"""Activations that are not kept for the backward pass but computed again in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *arguments: Any, when: bool) -> Any:
    """The result of a function, whose inner values are computed again in the backward pass where `when` says so."""
    return checkpoint(function, *arguments, use_reentrant=False) if when else function(*arguments)
