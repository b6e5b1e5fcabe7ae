"""Which arithmetic the steps of sampling run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hvq.compilation import compile_library
from hvq.priors import step_kernels
from tests.instructions import BUILDS, require_instructions

native = pytest.mark.skipif(step_kernels.library() is None, reason="needs a C compiler and a CPU with AVX2 or NEON")
every_backend = pytest.mark.parametrize("backend", [*(pytest.param(name, marks=native) for name in BUILDS), "torch"])


@contextmanager
def step_backend(name: str) -> Iterator[None]:
    """Steps run in one build of the compiled kernels, or in PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "torch":
            patch.setenv("HVQ_STEP_BACKEND", "torch")
        else:
            require_instructions(name)
            library = step_kernels.with_types(compile_library(step_kernels.SOURCE, *BUILDS[name]))
            patch.setattr(step_kernels, "library", lambda: library)
        yield
