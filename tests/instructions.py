"""Builds of C sources for other instruction sets than this CPU's best."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

_OTHERS = {
    "AVX2": ("-march=x86-64-v3",),
    "AVX2 alone": ("-march=x86-64-v3", "-fno-openmp"),
    "AVX-512 without VNNI": ("-march=x86-64-v4",),
}
BUILDS: dict[str, tuple[str, ...]] = {
    "this CPU": (),
    **(_OTHERS if platform.machine().lower() in ("x86_64", "amd64") else {}),
}


def require_instructions(build: str) -> None:
    """Skip the test where this CPU cannot run a build."""
    information = Path("/proc/cpuinfo")
    if "512" in build and not (information.exists() and "avx512bw" in information.read_text()):
        pytest.skip("needs a CPU with AVX-512")
