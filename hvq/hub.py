"""The network: repositories of the hub to folders and back, by `huggingface_hub`, which only this needs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hvq.errors import CheckpointError, ConfigurationError
from hvq.extras import require_package

# owner/name; a path that begins otherwise, or is longer, can only be one of this machine.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Folders of a repository that are ours: what an earlier upload left there, and this one has not, goes.
_OURS = ("autoencoder/*", "priors/*", "pictures/*")


def find_folder(
    name_or_folder: str | Path, *, files: Sequence[str], revision: str | None = None, token: str | None = None
) -> Path:
    """The folder of that name on this machine, or else a copy of the repository of that name on the hub.

    Args:
        name_or_folder: a folder, or `owner/name`; a `Path` is a folder of this machine in any case.
        files: what is wanted of a repository, with wildcards; nothing else is downloaded.
        revision: branch, tag or commit of a repository; its main branch by default.
        token: of a private repository; by default the one that `hf auth login` has left.

    Returns:
        A folder; one that is not there where the name cannot be that of a repository.

    Raises:
        ConfigurationError: where there is a folder of that name, and a revision was asked for.
        CheckpointError: where there is neither, or the hub cannot be reached.
    """
    folder = Path(name_or_folder).expanduser()
    if folder.exists() or isinstance(name_or_folder, Path) or not _REPOSITORY.fullmatch(name_or_folder):
        if revision is not None:
            raise ConfigurationError(
                f"revision {revision} is that of a repository on the hub, and {folder} is a folder of this machine; "
                "leave it out"
            )
        return folder
    return _download(name_or_folder, files, revision, token)


def publish(
    write: Callable[[Path], None], repo_id: str, *, what: str, private: bool, token: str | None, message: str
) -> str:
    """Upload a folder, to a repository that is made where there is none; returns its address.

    Args:
        write: is given the folder, and makes it; not before name and library are there.
        repo_id: `owner/name`.
        what: the folder holds, in one word.
        private: whether others cannot see a repository that is made; one that is there stays as it is.
        token: with leave to write; by default the one that `hf auth login` has left.
        message: of the commit.

    Raises:
        ConfigurationError: where the name is none.
        CheckpointError: where `huggingface_hub` is not installed, or the hub refuses or cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise ConfigurationError(f"a repository of the hub is named owner/name; received {repo_id}")
    hub = _library(f"{repo_id} cannot be published")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / what
        write(folder)
        with _said_by_hub(f"{what} cannot be published as {repo_id}"):
            api = hub.HfApi(token=token)
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=list(_OURS))
            return str(address)


def _download(name: str, files: Sequence[str], revision: str | None, token: str | None) -> Path:
    absent = f"there is no folder {name} here"
    hub = _library(absent)
    with _said_by_hub(f"{absent}, and the hub did not give a repository of that name"):
        return Path(hub.snapshot_download(name, revision=revision, token=token, allow_patterns=list(files)))


def _library(fault: str) -> Any:
    what = f"{fault}; repositories of the hub take huggingface_hub"
    return require_package("huggingface_hub", what=what, extra="hub", error=CheckpointError)


@contextmanager
def _said_by_hub(fault: str) -> Iterator[None]:
    try:
        yield
    # What it raises depends on its version, and on the library below it that speaks HTTP.
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{fault}: {said}") from error
