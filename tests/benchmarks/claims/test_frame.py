"""Verdicts, cells, and the command line that all claims share."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hvq.errors import DataError
from tests.benchmarks.claims.conftest import FOLDER, NAMES


@pytest.fixture
def frame(load_claim: Callable[[str], ModuleType]) -> ModuleType:
    return load_claim("frame")


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_are_true(name: str, load_claim: Callable[[str], ModuleType]) -> None:
    assert doctest.testmod(load_claim(name)).failed == 0


def test_a_cell_is_made_once_and_found_again_by_all_that_it_hangs_on(frame: ModuleType, tmp_path: Path) -> None:
    file, made = tmp_path / "cells" / "claim.json", []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"mse": 0.1 * len(made), "images": [[1, 2], [3, 4]]}

    first = frame.Cells(file).of({"beta": 0.1, "seed": 3}, make)
    again = frame.Cells(file)
    assert again.of({"seed": 3, "beta": 0.1}, make) == first
    assert again.of({"seed": 5, "beta": 0.1}, make) != first
    assert len(made) == 2
    in_memory = frame.Cells()
    assert in_memory.of({"seed": 3}, make) == in_memory.of({"seed": 3}, make)
    assert len(made) == 3


def test_a_verdict_replaces_its_own_and_no_other(frame: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "claims.json"
    for claim, holds in (("one", True), ("two", None), ("one", False)):
        frame.put_verdict(file, frame.Verdict(claim, holds, {"nats": 1.5}))
    rows = json.loads(file.read_text())
    assert [(row["claim"], row["holds"]) for row in rows] == [("two", None), ("one", False)]
    assert all(row.keys() == {"claim", "holds", "numbers"} for row in rows)


def test_the_command_line_saves_the_verdict_and_says_what_is_wrong(
    frame: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def measure(options: Any) -> Any:
        seen.append(options)
        return frame.Verdict("other", True, {"nats": 1.23456, "levels": {"top": 7}})

    words = ["--quick", "--json", str(tmp_path / "claims.json"), "--data", "somewhere", "--plots", "elsewhere"]
    assert frame.run_claim("folder/other.py", "About.", measure, words) == 0
    (options,) = seen
    assert (options.quick, options.data, options.plots) == (True, Path("somewhere"), Path("elsewhere"))
    assert options.cells.file == tmp_path / "claims.cells" / "other.json"
    assert "| other | yes | nats: 1.235; levels / top: 7 |" in capsys.readouterr().out

    def refuse(options: Any) -> Any:
        raise DataError("there is no data")

    assert frame.run_claim("folder/other.py", "About.", refuse, []) == 1
    assert capsys.readouterr().err == "there is no data\n"
    assert (FOLDER / "frame.py").exists()
