"""Memory of a process that takes the same steps again and again."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import torch

# Parameters of glibc's `mallopt`, and what each is set to.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_THRESHOLD, _LARGEST_KEPT = -3, 1 << 30

_GIB = 2.0**30

# What Linux says of this process.
_STATUS = Path("/proc/self/status")


def keep_freed_memory() -> bool:
    """Let the process keep what it frees on the CPU for its next allocations; returns whether it will.

    glibc gives large blocks back to the system as soon as they are freed, so that each activation of each training step
    is fetched from it anew, page by page, and filled with zeros: a tenth of a step. The process stays as large as it
    was at its largest, which with steps that are all alike is what it needs; blocks of a GiB and more are still given
    back. Where another allocator runs, nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))


def peak_memory(device: torch.device) -> float | None:
    """The most memory, in GiB, that this process has held so far; None where the system does not say.

    On a CUDA device that of its tensors, and the process's own, resident in the machine, elsewhere.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    if _STATUS.exists():
        # What `getrusage` says on Linux, a process has from the one that started it.
        (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
        return int(kibibytes) * 1024 / _GIB
    try:
        import resource
    except ImportError:
        # On Windows.
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return peak * (1 if sys.platform == "darwin" else 1024) / _GIB
