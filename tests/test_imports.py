"""The plan of the house, held against its imports."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_ERROR, EXIT_STATUS_SUCCESS, lint_imports

import hvq

ROOT = Path(__file__).parent.parent
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]


def test_each_room_imports_only_from_floors_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(cache_dir=None) == EXIT_STATUS_SUCCESS


def test_the_contract_would_notice_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    upside_down = tmp_path / "contract.ini"
    upside_down.write_text(
        "[importlinter]\nroot_package = hvq\n"
        "[importlinter:contract:floors]\nname = floors\ntype = layers\n"
        "layers =\n    hvq.errors\n    hvq.config_loading\n"
    )
    assert lint_imports(config_filename=str(upside_down), cache_dir=None) == EXIT_STATUS_ERROR


def test_every_module_has_its_floor() -> None:
    placed = {name.strip() for layer in CONTRACT["layers"] for name in layer.split("|")}
    modules = {
        f"hvq.{path.stem}"
        for path in Path(hvq.__file__).parent.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert modules - placed == set()
