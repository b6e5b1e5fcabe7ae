"""All claims in processes of their own: what fails loses its own row alone, and every claim is in the README."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.claims.conftest import FOLDER

GOOD = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
file = Path(words[words.index("--json") + 1])
rows = json.loads(file.read_text()) if file.exists() else []
rows.append({"claim": "good", "holds": "--quick" in words, "numbers": {"data": words[words.index("--data") + 1]}})
file.write_text(json.dumps(rows))
"""
BAD = """
import sys
print("first line", file=sys.stderr)
raise ValueError("no such thing")
"""


@pytest.fixture
def every(load_claim: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with two claims of a test's own."""
    module = load_claim("all")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "CLAIMS", ("bad", "good"))
    return module


def test_one_that_fails_does_not_lose_the_others(
    every: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "claims.json"
    assert every.main(["--quick", "--json", str(file), "--data", "here"]) == 1
    assert json.loads(file.read_text()) == [
        {"claim": "bad", "holds": None, "numbers": {"error": "ValueError: no such thing"}},
        {"claim": "good", "holds": True, "numbers": {"data": "here"}},
    ]
    out = capsys.readouterr().out
    assert "| bad | not measured | error: ValueError: no such thing |" in out
    assert "| good | yes | data: here |" in out


def test_some_of_them_and_no_file(every: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert every.main(["--only", "good"]) == 0
    out = capsys.readouterr().out
    assert "| good | no |" in out
    assert "bad" not in out


def test_every_claim_has_a_script_with_a_criterion_a_plot_and_a_row(load_claim: Callable[[str], ModuleType]) -> None:
    readme, claims = (FOLDER / "README.md").read_text(), load_claim("all").CLAIMS
    assert len(claims) >= 4
    for claim in claims:
        assert "\nThe claim holds if" in (FOLDER / f"{claim}.py").read_text()
        assert (FOLDER / f"{claim}.png").exists()
        assert f"({claim}.png)" in readme
