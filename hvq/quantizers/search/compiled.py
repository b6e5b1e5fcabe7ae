"""`native.c`, compiled on first use by the system's compiler for the CPU at hand.

As `torch.compile` and Triton do it: the library lies in the user's cache folder, named by a hash of what it was made
from. Without a compiler, a cache folder, or AVX2, plain PyTorch takes its place.
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
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math")
_COMPILE_SECONDS = 120
_PROCESS = os.getpid()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, or None where it cannot be had."""
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
        RuntimeError: where nobody's home folder is known.
        subprocess.SubprocessError: where it does not compile.
    """
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler: none of cc, gcc and clang is on the path")
    command = [compiler, *_FLAGS, *flags]
    place = _cache_folder() / f"search-{_fingerprint(command)}.so"
    if not place.exists():
        _compile(command, place)
    return ctypes.CDLL(str(place))


def num_threads() -> int:
    """As many as torch uses; one in a forked process, whose OpenMP lost its other threads."""
    return torch.get_num_threads() if os.getpid() == _PROCESS else 1


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Where a contiguous tensor on the CPU lies; the caller keeps it alive."""
    return ctypes.c_void_p(tensor.data_ptr())


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
