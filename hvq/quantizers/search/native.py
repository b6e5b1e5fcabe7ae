"""The search in C, compiled on first use by the system's compiler for the CPU at hand.

As `torch.compile` and Triton do it: the library lies in the user's cache folder, named by a hash of what it was made
from. Without a compiler, a cache folder, or AVX2, the search in plain PyTorch takes its place.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("native.c")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")
_COMPILE_SECONDS = 120


def is_available() -> bool:
    """Whether the library is there, or could be compiled."""
    return _library() is not None


def nearest_native(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook vector, as float64 would find it.

    Args:
        latents: `[N, D]`, float32, on the CPU.
        codebook: `[K, D]`, likewise.
    """
    library = _library()
    assert library is not None
    return call(library, latents, codebook)


def call(library: ctypes.CDLL, latents: Tensor, codebook: Tensor, *, first_tier: int = 1) -> Tensor:
    """Run a compiled library; its first tier works in 16-bit integers (1) or in float32 (0)."""
    latents, codebook = latents.contiguous(), codebook.contiguous()
    center = codebook.mean(dim=0)
    codes = torch.empty(len(latents), dtype=torch.int64)
    failed = library.hvq_nearest(
        ctypes.c_void_p(latents.data_ptr()),
        ctypes.c_int64(len(latents)),
        ctypes.c_void_p(codebook.data_ptr()),
        ctypes.c_int64(len(codebook)),
        ctypes.c_int64(codebook.shape[1]),
        ctypes.c_void_p(center.data_ptr()),
        ctypes.c_int(first_tier),
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_void_p(codes.data_ptr()),
    )
    if failed:
        raise MemoryError(f"no memory to search {len(codebook)} vectors of {codebook.shape[1]} numbers")
    return codes


@functools.cache
def _library() -> ctypes.CDLL | None:
    # A machine may lack what it takes in many ways, and none of them is a reason to stop.
    try:
        return compile_library()
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def compile_library(*flags: str) -> ctypes.CDLL:
    """The library for this CPU, from the cache or compiled.

    Args:
        flags: for the compiler, after the usual ones.

    Raises:
        OSError: where there is no compiler, or nothing can be written.
        RuntimeError: where the user has no home folder.
        subprocess.SubprocessError: where it does not compile.
    """
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler: none of cc, gcc and clang is on the path")
    command = [compiler, *_FLAGS, *flags]
    place = _cache_folder() / f"search-{_fingerprint(command)}.so"
    if not place.exists():
        _compile(command, place)
    library = ctypes.CDLL(str(place))
    library.hvq_nearest.restype = ctypes.c_int
    return library


def _compile(command: list[str], path: Path) -> None:
    """Beside its place, then renamed: processes that race for it never load half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        subprocess.run(
            [*command, str(_SOURCE), "-o", str(partial), "-lm"],
            check=True,
            capture_output=True,
            timeout=_COMPILE_SECONDS,
        )
        partial.replace(path)


def _fingerprint(command: list[str]) -> str:
    version = subprocess.run([command[0], "--version"], check=True, capture_output=True, timeout=_COMPILE_SECONDS)
    parts = (_SOURCE.read_bytes(), " ".join(command).encode(), version.stdout, _cpu())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _cpu() -> bytes:
    """What tells CPUs apart between which a library cannot travel, as in a home folder that machines share."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_bytes().splitlines()
        return b"\n".join(sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features"))}))
    return f"{platform.machine()} {platform.processor()}".encode()


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "hvq"
