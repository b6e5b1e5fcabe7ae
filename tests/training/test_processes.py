"""A script says how many processes run, and on what."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvq.storage import RunFolder
from hvq.training.processes import describe, make_accelerator
from tests.runs import tiny_config


def test_one_process_on_the_cpu(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    accelerator = make_accelerator(tiny_config(tmp_path), run)
    assert describe(accelerator) == "1 process on cpu, precision no"
    assert not run.path.exists()


@pytest.mark.parametrize("number", [2, 3])
def test_several(number: int) -> None:
    class Several:
        num_processes = number
        device = type("Device", (), {"type": "cuda"})
        mixed_precision = "bf16"

    assert describe(Several()) == f"{number} processes on cuda, precision bf16"  # type: ignore[arg-type]
