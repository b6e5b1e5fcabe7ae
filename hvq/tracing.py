"""Whether torch is looking on to make a graph of what runs."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Whether `torch.export` looks on: what it makes is to be of operations that all runtimes know, for any batch.

    >>> is_exporting()
    False
    """
    # Older versions of torch do not tell it from compiling.
    return bool(getattr(torch.compiler, "is_exporting", lambda: False)())
