"""Folders first, the hub second; what the hub says becomes one sentence. No network: the hub is a folder here."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import pytest

from hvq.errors import CheckpointError, ConfigurationError
from hvq.hub import find_folder, publish
from tests.hubs import FakeApi, FakeHub, block_hub, make_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.chdir(tmp_path)
    return make_hub(tmp_path / "hub", monkeypatch)


def _publish(folder: Path, repo_id: str = "owner/name") -> str:
    def write(target: Path) -> None:
        shutil.copytree(folder, target, dirs_exist_ok=True)

    return publish(write, repo_id, what="model", private=True, token="secret", message="m")


def test_a_folder_of_that_name_comes_first(hub: FakeHub) -> None:
    Path("owner/name").mkdir(parents=True)
    assert find_folder("owner/name", files=["*"]) == Path("owner/name")
    assert hub.calls == []


@pytest.mark.parametrize(
    "name", [Path("owner/name"), "/owner/name", "./name", "../name", "name", "a/b/c", "owner/", ""]
)
def test_what_cannot_be_a_repository_is_a_folder(hub: FakeHub, name: str | Path) -> None:
    assert find_folder(name, files=["*"]) == Path(name)
    assert hub.calls == []


def test_folders_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block_hub(monkeypatch)
    assert find_folder(str(tmp_path), files=["*"]) == tmp_path
    with pytest.raises(
        CheckpointError, match=r'no folder owner/name here; .* not installed: pip install "hvq\[hub\]"$'
    ):
        find_folder("owner/name", files=["*"])
    with pytest.raises(CheckpointError, match=r'owner/name cannot be published; .* pip install "hvq\[hub\]"$'):
        _publish(tmp_path)


def test_only_what_is_asked_for_is_downloaded(hub: FakeHub) -> None:
    there = hub.folder / "owner" / "name"
    (there / "code").mkdir(parents=True)
    for name in ("config.json", "code/run.py", "pytorch_model.bin"):
        (there / name).write_text(name)
    folder = find_folder("owner/name", files=["config.json"], revision="v2", token="secret")
    assert [path.name for path in folder.rglob("*")] == ["config.json"]
    assert hub.calls == [("snapshot_download", {"repo_id": "owner/name", "revision": "v2", "token": "secret"})]


def test_a_revision_is_none_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"revision v2 is that of a repository .* leave it out"):
        find_folder(tmp_path, files=["*"], revision="v2")


def test_what_the_hub_says_is_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        find_folder("runs/quickstart", files=["*"])
    assert str(raised.value) == (
        "there is no folder runs/quickstart here, and the hub did not give a repository of that name: "
        "404 Client Error. Repository Not Found for runs/quickstart."
    )
    hub.fault = RuntimeError()
    with pytest.raises(CheckpointError, match=r"^there is no folder .*: RuntimeError$"):
        find_folder("runs/quickstart", files=["*"])
    with pytest.raises(CheckpointError, match=r"^model cannot be published as owner/name: RuntimeError$") as raised:
        _publish(tmp_path)
    assert "secret" not in str(raised.value)


def test_a_folder_is_published_and_replaces_what_was(hub: FakeHub, tmp_path: Path) -> None:
    there, folder = hub.folder / "owner" / "name", tmp_path / "model"
    for path in (there / "priors" / "old" / "x", there / "mine.txt", folder / "priors" / "new" / "x", folder / "y"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert _publish(folder) == "https://hub.example/owner/name"
    left = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert left == {"mine.txt", "priors/new/x", "y"}
    assert hub.calls == [
        ("HfApi", {"token": "secret"}),
        ("create_repo", {"repo_id": "owner/name", "private": True}),
        ("upload_folder", {"repo_id": "owner/name", "commit_message": "m"}),
    ]


@pytest.mark.parametrize("name", ["name", "a/b/c", "/a/b", "owner/na me", "runs\\x"])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(hub: FakeHub, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="is named owner/name; received"):
        _publish(tmp_path, name)
    assert hub.calls == []


def test_the_library_takes_what_it_is_given() -> None:
    """The stand-in's arguments are those of the real one."""
    real = pytest.importorskip("huggingface_hub")
    for own, theirs in (
        (FakeHub.snapshot_download, real.snapshot_download),
        (FakeApi.create_repo, real.HfApi.create_repo),
        (FakeApi.upload_folder, real.HfApi.upload_folder),
    ):
        assert set(inspect.signature(own).parameters) - {"self"} <= set(inspect.signature(theirs).parameters)
    assert "token" in inspect.signature(real.HfApi).parameters
