"""Where precision is kept: TF32, products of numbers rounded to 10 bits, and autocast, allowed or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from hvq.tracing import is_exporting


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Matrix products and convolutions of float32 may be computed in TF32 inside, or may not; a CPU has none.

    >>> with tf32(True): torch.backends.cuda.matmul.allow_tf32
    True
    """
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast is off inside; what is exported has no word for it, and nobody exports under autocast."""
    return nullcontext() if is_exporting() else torch.autocast(device_type, enabled=False)
