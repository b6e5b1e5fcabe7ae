from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when the package is first imported.
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of each test's own, rather than the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HVQ_CACHE", str(folder))
    return folder
