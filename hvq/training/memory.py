"""Memory of a process that takes the same steps again and again."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's `mallopt`, and what each is set to.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_THRESHOLD, _LARGEST_KEPT = -3, 1 << 30


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
