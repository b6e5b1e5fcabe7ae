from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of each test's own, rather than the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HVQ_CACHE", str(folder))
    return folder
