"""Claims are scripts that import their neighbours by bare name, as `python benchmarks/claims/x.py` finds them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "claims"
NAMES = [file.stem for file in FOLDER.glob("*.py")]


@pytest.fixture
def load_claim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A script of the folder, and what it imports there, as new modules that a test may change."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in NAMES:
        sys.modules.pop(name, None)
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)
