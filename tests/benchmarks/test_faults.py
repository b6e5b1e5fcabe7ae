"""The benchmark that attacks runs: it counts, finds harm where there is some, and goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hvq.storage import RunFolder
from tests.runs import TrainedRun

Load = Callable[[str], ModuleType]


@pytest.fixture
def faults(load_benchmark: Load) -> ModuleType:
    return load_benchmark("faults")


def test_harm_is_counted_and_told(faults: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tally = faults.Tally("example")
    tally.note(None, "")
    tally.note("broken", None, "gone")
    assert tally.row() == faults.Row("example", tried=2, survived=1, lost=1)
    assert "LOST, example: broken; gone" in capsys.readouterr().err
    assert faults.table([tally.row()] * 3).splitlines()[-1] == "| all | 6 | 3 | 3 |"


def test_half_written_files_and_differing_runs_are_found(load_benchmark: Load, copied_run: TrainedRun) -> None:
    attacked, run = load_benchmark("attacked_runs"), copied_run.run
    other = copied_run.copied(run.path.with_name("other")).run
    assert attacked.faults_of(run) == []
    assert attacked.difference(run, other, "autoencoder") is None
    assert attacked.difference(run, RunFolder(run.path / "nowhere"), "autoencoder") is not None
    assert attacked.difference(RunFolder(run.path / "nowhere"), run, "autoencoder") == "autoencoder holds no tensors"
    file = run.autoencoder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert attacked.difference(run, other, "autoencoder") is not None
    file.write_bytes(content[:-1])
    (run.path / "metrics.json").write_text("{")
    assert len(attacked.faults_of(run)) == 2
    # What a writer has not given its final name is nobody's.
    (run.path / ".x.json.7.partial").write_text("{")
    assert len(attacked.faults_of(run)) == 2


def test_what_is_read_as_whole_though_it_is_not_is_harm(faults: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert faults._unless_refused(lambda folder: None, file, b"xyz") == "model.safetensors of 3 bytes was read as whole"

    def refuse(folder: Path) -> None:
        raise faults.CheckpointError("config.json is damaged")

    assert "is not named" in faults._unless_refused(refuse, file, b"")


def test_every_hostile_file_can_be_made(load_benchmark: Load, tmp_path: Path) -> None:
    hostile = load_benchmark("hostile_images").HOSTILE
    for name, write in hostile.items():
        write(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == len(hostile)


@pytest.mark.processes
def test_kills_are_survived_and_not_made_again(
    faults: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--json", str(tmp_path / "rows.json"), "--kills", "7", "--only", "kill prior.top"]
    assert faults.main(words) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row == {"fault": "kill -9, prior.top", "tried": 1, "survived": 1, "lost": 0, "cell": "kill prior.top"}
    monkeypatch.setattr(faults, "make_setting", lambda _: pytest.fail("made again"))
    assert faults.main(words) == 0
