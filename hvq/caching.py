"""Where files lie that can be made again: compiled sources, and what reading a data set once has found out."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`HVQ_CACHE` where it is set, else `hvq` in the user's cache folder.

    Raises:
        RuntimeError: where the user has no home folder.
    """
    own = os.environ.get("HVQ_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "hvq"
