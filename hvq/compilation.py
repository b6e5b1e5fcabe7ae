"""C sources that are compiled on first use by the system's compiler, for the CPU at hand.

As `torch.compile` and Triton do it: a library lies in the user's cache folder, named by a hash of what it was made of.
Without a compiler, a cache folder, or the instructions that a source asks for, plain PyTorch takes its place.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from hvq.caching import cache_folder

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")
_COMPILE_SECONDS = 120


def load_compiled(source: Path) -> ctypes.CDLL | None:
    """The library of a source; None where this machine cannot compile or run it, for whatever reason."""
    # A machine may lack what it takes in many ways, and none of them is a reason to stop.
    try:
        return compile_library(source)
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def compile_library(source: Path, *flags: str) -> ctypes.CDLL:
    """The library of a source for this CPU, from the cache or compiled.

    Args:
        source: a file in C.
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
    place = cache_folder() / f"{source.stem}-{_fingerprint(source, command)}.so"
    if not place.exists():
        _compile(source, command, place)
    return ctypes.CDLL(str(place))


def _compile(source: Path, command: list[str], path: Path) -> None:
    """Beside its place, then renamed: processes that race for it never load half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        subprocess.run(
            [*command, str(source), "-o", str(partial), "-lm"],
            check=True,
            capture_output=True,
            timeout=_COMPILE_SECONDS,
        )
        partial.replace(path)


def _fingerprint(source: Path, command: list[str]) -> str:
    version = subprocess.run([command[0], "--version"], check=True, capture_output=True, timeout=_COMPILE_SECONDS)
    parts = (source.read_bytes(), " ".join(command).encode(), version.stdout, _cpu())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _cpu() -> bytes:
    """What tells CPUs apart between which a library cannot travel, as in a home folder that machines share."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_bytes().splitlines()
        return b"\n".join(sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features"))}))
    return f"{platform.machine()} {platform.processor()}".encode()
