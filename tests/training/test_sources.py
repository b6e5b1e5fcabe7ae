"""Of several processes one looks through the data first, and none waits for one that could not."""

from __future__ import annotations

import os
from pathlib import Path

from accelerate import Accelerator

from hvq.config_data import FolderConfig
from hvq.data import build_sources, listing
from hvq.training.sources import build_sources_in_turn
from tests.data.kinds import save_folder
from tests.processes import end_in_processes, run_in_processes


def _opened(folder: str, cache: str) -> tuple[int, str]:
    """How many files this process has opened to see whether they can be read, and what it found."""
    os.environ["HVQ_CACHE"] = cache
    count = 0
    original = listing.is_readable

    def counted(file: object) -> bool:
        nonlocal count
        count += 1
        return original(file)  # type: ignore[arg-type]

    listing.is_readable = counted  # type: ignore[assignment]
    try:
        sources = build_sources_in_turn(FolderConfig(path=folder, size=(5, 7)), 0, Accelerator(cpu=True))
    finally:
        listing.is_readable = original
    return count, sources.train.fingerprint()


def test_the_first_looks_and_the_others_take_what_it_found(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "images", 11)
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18))
    found = run_in_processes(_opened, 3, str(folder), str(tmp_path / "cache"))
    assert [count for count, _ in found] == [11, 0, 0]
    expected = build_sources(FolderConfig(path=str(folder), size=(5, 7)), 0).train.fingerprint()
    assert {fingerprint for _, fingerprint in found} == {expected}


def _missing(folder: str, missing_in: int) -> None:
    accelerator = Accelerator(cpu=True)
    path = folder if accelerator.process_index != missing_in else f"{folder}/nowhere"
    build_sources_in_turn(FolderConfig(path=path, size=(5, 7)), 0, accelerator)


def test_no_process_waits_for_one_that_finds_nothing(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "images", 11)
    for missing_in in (0, 1):
        ended = end_in_processes(_missing, 2, str(folder), missing_in)
        assert [process.code for process in ended] == [1, 1]
        assert "there is no folder" in ended[missing_in].errors[0]
        assert "another process of this run could not make its images ready" in ended[1 - missing_in].errors[0]
