"""Builds of C sources for other instruction sets than this CPU's best."""

from __future__ import annotations

from pathlib import Path

import pytest

BUILDS = {
    "this CPU": (),
    "AVX2": ("-march=x86-64-v3",),
    "AVX2 alone": ("-march=x86-64-v3", "-fno-openmp"),
    "AVX-512 without VNNI": ("-march=x86-64-v4",),
}


def require_instructions(build: str) -> None:
    """Skip the test where this CPU cannot run a build."""
    flags = Path("/proc/cpuinfo").read_text()
    if "512" in build and "avx512bw" not in flags:
        pytest.skip("needs a CPU with AVX-512")
