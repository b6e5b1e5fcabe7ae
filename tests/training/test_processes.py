"""A script says how many processes run, and on what."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from hvq.config import OptimizationConfig
from hvq.errors import ConfigurationError
from hvq.storage import RunFolder
from hvq.training.optimization import Optimization
from hvq.training.processes import describe, lost_process, make_accelerator
from tests.processes import run_in_processes
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
        (RuntimeError("Application timeout caused pair closure"), r"did not answer \(process_timeout\): see"),
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


@pytest.mark.parametrize(("number", "kind"), [(2, DistributedType.MULTI_GPU), (3, DistributedType.FSDP)])
def test_several(number: int, kind: DistributedType) -> None:
    class Several:
        num_processes = number
        distributed_type = kind
        device = type("Device", (), {"type": "cuda"})
        mixed_precision = "bf16"

    shards = ", in shards" if kind == DistributedType.FSDP else ""
    assert describe(Several()) == f"{number} processes on cuda{shards}, precision bf16"  # type: ignore[arg-type]


# --- started by torchrun, which says nothing of devices -----------------------------------------------------------


def _know_each_other(folder: str) -> int:
    del os.environ["ACCELERATE_USE_CPU"]
    config = tiny_config(Path(folder))
    return make_accelerator(config, RunFolder(Path(folder))).num_processes


@pytest.mark.processes
def test_processes_know_each_other(tmp_path: Path) -> None:
    assert run_in_processes(_know_each_other, 2, str(tmp_path)) == [2, 2]


def _do_not_know_each_other() -> str | None:
    del os.environ["ACCELERATE_USE_CPU"]
    accelerator = Accelerator()
    if accelerator.num_processes == 2:
        return None
    with pytest.raises(ConfigurationError) as refused:
        Optimization(nn.Linear(2, 1), OptimizationConfig(), accelerator, seed=0)
    return str(refused.value)


@pytest.mark.processes
@pytest.mark.skipif(torch.accelerator.is_available(), reason="accelerate finds the processes by their GPUs")
def test_an_accelerator_that_does_not_know_them_is_refused() -> None:
    for said in run_in_processes(_do_not_know_each_other, 2):
        if said is None:
            pytest.skip("this version of accelerate finds the processes by itself")
        assert re.search(r"2 processes run, and accelerate knows of 1; .* ACCELERATE_USE_CPU", said)
