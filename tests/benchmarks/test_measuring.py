"""What benchmarks share measures something, and says why where it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch


@dataclass(frozen=True)
class Pair:
    one: int
    two: float


@pytest.fixture
def measuring(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("measuring")


def test_rows_are_read_as_they_were_saved(measuring: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert measuring.load_rows(file, Pair) == measuring.load_rows(None, Pair) == []
    measuring.save_rows(file, [Pair(1, 2.5), Pair(3, 4.5)])
    measuring.save_rows(None, [Pair(1, 2.5)])
    assert measuring.load_rows(file, Pair) == [Pair(1, 2.5), Pair(3, 4.5)]


def test_bandwidth_does_without_a_compiler(
    measuring: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(*_: object, **__: object) -> Callable[..., None]:
        def fail(*_: object) -> None:
            raise RuntimeError("no compiler\nand more")

        return fail

    monkeypatch.setattr(measuring, "BANDWIDTH_MIB", 4)
    monkeypatch.setattr(torch, "compile", no_compiler)
    assert 1e8 < measuring.best_bandwidth("cpu") < 1e13
    assert "skipped: bandwidth by matrix-vector, compiled: no compiler\n" in capsys.readouterr().err


def test_a_process_that_does_not_end_is_killed(measuring: ModuleType) -> None:
    ends, stays = (
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True)
        for script in ("import sys; sys.exit(sys.stdin.read() != str())", "import time; time.sleep(600)")
    )
    measuring.end(ends)
    assert ends.returncode == 0
    with pytest.raises(RuntimeError, match=r"did not end within 0\.3 s"):
        measuring.end(stays, 0.3)
    assert stays.returncode == -signal.SIGKILL


def test_peak_is_what_is_held_beyond_the_start(measuring: ModuleType) -> None:
    assert 60 < measuring.peak_beyond(lambda: torch.ones(16 * 2**20), "cpu") < 100


def test_a_process_that_fails_has_no_peak(
    measuring: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(1.5) if sys.argv[1] == 'well' else sys.exit('out of luck')")
    assert measuring.peak_in_a_process(str(script), ["well"], "this") == 1.5
    assert measuring.peak_in_a_process(str(script), ["badly"], "that") is None
    assert "no peak of that: out of luck" in capsys.readouterr().err


def test_about_names_bandwidth_where_it_is_measured(measuring: ModuleType) -> None:
    assert "best rate 2 GFLOP/s; 20" in measuring.about("cpu", 2e9)
    assert "best rate 2 GFLOP/s; best bandwidth 3.5 GB/s; 20" in measuring.about("cpu", 2e9, 3.5e9)
