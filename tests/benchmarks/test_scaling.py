"""The benchmark trains in real processes, and its shares and efficiencies are what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROW = {
    "model",
    "size",
    "batch_per_process",
    "processes",
    "communicating",
    "samples_per_second",
    "efficiency",
    "commit_share",
}


@pytest.fixture
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    scaling = load_benchmark("scaling")
    scaling.best_rate = lambda device: 1e12
    return scaling


class _Scripted:
    """Stands for the processes of a group."""

    def __init__(self, task: object, group: str) -> None:
        slowest = {"one": 2.0, "apart": 2.1, "together": 2.5}[group]
        self._turns = iter([(9.0, 9.0), (slowest, 0.1), (slowest, 0.05), (slowest / 2, 0.0), (slowest, 0.1)])

    def turn(self) -> tuple[float, float]:
        return next(self._turns)

    def close(self) -> None:
        self._turns = iter(())


def test_efficiency_is_the_rate_of_one_over_that_of_each(benchmark: ModuleType) -> None:
    benchmark.Workers = _Scripted
    one, apart, together = benchmark.measure(benchmark.Task("autoencoder", 128, 7, steps=1, rounds=5))
    assert [row.processes for row in (one, apart, together)] == [1, 2, 2]
    assert [row.communicating for row in (one, apart, together)] == [False, False, True]
    assert [row.samples_per_second for row in (one, apart, together)] == pytest.approx([3.5, 14 / 2.1, 5.6])
    assert [row.efficiency for row in (one, apart, together)] == pytest.approx([1.0, 2 / 2.1, 0.8])
    assert one.commit_share == pytest.approx(0.05)
    assert together.commit_share == pytest.approx(0.04)


def test_rows_are_kept_and_not_measured_again(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.Workers = _Scripted
    words = ["--json", str(tmp_path / "rows.json")]
    benchmark.TASKS = tuple(benchmark.Task(model, 5, 3, steps=1, rounds=3) for model in ("autoencoder", "transformer"))
    assert benchmark.main([*words, "--only", "transformer"]) == 0
    assert benchmark.main(words) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["model"] for row in rows] == ["transformer"] * 3 + ["autoencoder"] * 3
    assert all(row.keys() == ROW for row in rows)
    assert "| autoencoder | 5x5 | 3 | 2, apart |" in capsys.readouterr().out
    benchmark.Workers = lambda *_: pytest.fail("measured again")
    assert benchmark.main(words) == 0


@pytest.mark.processes
@pytest.mark.parametrize("model", ["autoencoder", "transformer"])
def test_two_processes_train_together(benchmark: ModuleType, model: str) -> None:
    workers = benchmark.Workers(benchmark.Task(model, 16, 2, steps=2), "together")
    try:
        turns = [workers.turn() for _ in range(2)]
    finally:
        workers.close()
    for seconds, commit in turns:
        assert seconds > 0
        assert (commit is None) == (model == "transformer")
        assert commit is None or 0 < commit < seconds
    assert [process.returncode for process in workers._processes] == [0, 0]


@pytest.mark.processes
def test_a_process_that_fails_ends_the_measurement(benchmark: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="a process ended with exit code 1"):
        benchmark.Workers(benchmark.Task("unknown", 16, 2, steps=1), "one")
