"""Nothing here unpickles a file, which could run whatever its author wanted."""

from __future__ import annotations

import pickle

import pytest
import torch


def block_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever unpickles anything fails."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("something was unpickled")

    for module in (pickle, torch):
        for name in {"load", "loads", "Unpickler"} & set(vars(module)):
            monkeypatch.setattr(module, name, refuse)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"")
