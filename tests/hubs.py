"""A hub of the hub's functions that are used here, on this machine: a folder for each repository, and no network."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


class RefusedError(OSError):
    """What the hub says, in several lines as it does."""


@dataclass
class FakeHub:
    """Stands in for `huggingface_hub`.

    Attributes:
        folder: with a folder for each repository.
        calls: names and arguments of all calls, in order.
        fault: raised by each call.
    """

    folder: Path
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fault: Exception | None = None

    def _call(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, arguments))
        if self.fault is not None:
            raise self.fault

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, token: str | None, allow_patterns: list[str]
    ) -> str:
        self._call("snapshot_download", repo_id=repo_id, revision=revision, token=token)
        there = self.folder / repo_id
        if not there.exists():
            raise RefusedError(f"404 Client Error.\n\nRepository Not Found for {repo_id}.")
        copy = self.folder / "cache" / repo_id
        for path in there.rglob("*"):
            name = path.relative_to(there).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy / name)
        return str(copy)

    def api(self, token: str | None) -> FakeApi:
        self._call("HfApi", token=token)
        return FakeApi(self)


@dataclass
class FakeApi:
    """Stands in for `huggingface_hub.HfApi`."""

    hub: FakeHub

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        self.hub._call("create_repo", repo_id=repo_id, private=private)
        (self.hub.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub.example/{repo_id}"

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]
    ) -> None:
        self.hub._call("upload_folder", repo_id=repo_id, commit_message=commit_message)
        there = self.hub.folder / repo_id
        for path in list(there.rglob("*")):
            name = path.relative_to(there).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in delete_patterns):
                path.unlink()
        shutil.copytree(folder_path, there, dirs_exist_ok=True)


def make_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Put a hub in the place of the real one."""
    hub, module = FakeHub(folder), ModuleType("huggingface_hub")
    module.snapshot_download = hub.snapshot_download  # type: ignore[attr-defined]
    module.HfApi = hub.api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return hub


def block_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `huggingface_hub` were not installed."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
