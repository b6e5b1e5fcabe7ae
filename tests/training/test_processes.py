"""A script says how many processes run, and on what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from hvq.storage import RunFolder
from hvq.training.processes import describe, lost_process, make_accelerator
from tests.runs import tiny_config


def test_one_process_on_the_cpu(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    accelerator = make_accelerator(tiny_config(tmp_path), run)
    assert describe(accelerator) == "1 process on cpu, precision no"
    assert not run.path.exists()


GLOO = "[/src/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] "


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError(GLOO + "Connection closed by peer [127.0.0.1]:7"), "another process of this run has ended"),
        (RuntimeError(GLOO + "Read error [127.0.0.1]:7: Connection reset by peer"), "has ended"),
        (
            RuntimeError(GLOO + "Timed out waiting 4500ms for recv operation"),
            r"answer for 4.5 seconds \(process_timeout\)",
        ),
        (DistStoreError("wait timeout after 600000ms, keys: /default_pg/0"), "did not answer for 600 seconds"),
        (DistBackendError("NCCL error: ncclRemoteError: A call failed"), "has ended"),
        (DistBackendError("NCCL error: unhandled cuda error"), None),
        (DistNetworkError("The server socket has failed to listen: EADDRINUSE"), None),
        (RuntimeError("DataLoader timed out after 5 seconds"), None),
        (RuntimeError("CUDA out of memory"), None),
    ],
)
def test_what_is_the_fault_of_another_process(error: RuntimeError, sentence: str | None) -> None:
    found = lost_process(error)
    if sentence is None:
        assert found is None
    else:
        assert re.search(sentence, str(found))


@pytest.mark.parametrize("number", [2, 3])
def test_several(number: int) -> None:
    class Several:
        num_processes = number
        device = type("Device", (), {"type": "cuda"})
        mixed_precision = "bf16"

    assert describe(Several()) == f"{number} processes on cuda, precision bf16"  # type: ignore[arg-type]
