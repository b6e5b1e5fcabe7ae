"""The processes of a run, through accelerate."""

from __future__ import annotations

import re
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, is_tensorboard_available
from torch.distributed import DistError

from hvq.config import RunConfig
from hvq.errors import ProcessError
from hvq.storage import RunFolder
from hvq.training.memory import keep_freed_memory


def make_accelerator(config: RunConfig, run: RunFolder) -> Accelerator:
    """The accelerator of a run: devices and processes as the launcher gives them, TensorBoard where it is installed."""
    keep_freed_memory()
    # None rather than an empty list, at which accelerate warns.
    trackers = ["tensorboard"] if is_tensorboard_available() else None
    return Accelerator(
        mixed_precision=config.mixed_precision,
        # Sums over processes and held-out means are float64, which Apple's GPUs do not have.
        cpu=torch.backends.mps.is_available(),
        # Micro-batches are counted by the training loop; a launcher's own setting would divide the loss once more.
        gradient_accumulation_steps=1,
        log_with=trackers,
        project_dir=str(run.path / "tensorboard"),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout))],
    )


def describe(accelerator: Accelerator) -> str:
    """How many processes run, and on what: what a script says first."""
    number = accelerator.num_processes
    processes = "1 process" if number == 1 else f"{number} processes"
    return f"{processes} on {accelerator.device.type}, precision {accelerator.mixed_precision}"


# What gloo says, whose errors are plain ones that name its source files, and NCCL, where the other end is gone.
_GONE = re.compile("closed by peer|reset by peer|broken pipe|socket closed|remote process exit|ncclRemoteError", re.I)
_SILENT = re.compile("timed out|timeout", re.I)


def lost_process(error: RuntimeError) -> ProcessError | None:
    """The sentence for a collective that failed because of another process; None for any other error.

    >>> print(lost_process(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:17")))
    another process of this run has ended; see what it said, mend that, and start again
    >>> lost_process(RuntimeError("shapes cannot be multiplied")) is None
    True
    """
    message = str(error)
    if not isinstance(error, DistError) and "gloo/" not in message:
        return None
    if _GONE.search(message):
        return ProcessError("another process of this run has ended; see what it said, mend that, and start again")
    if not _SILENT.search(message):
        return None
    waited = re.search(r"(\d+) ?ms", message)
    time = f" for {int(waited[1]) / 1000:g} seconds" if waited else ""
    return ProcessError(
        f"another process of this run did not answer{time} (process_timeout): see what it said, and start again, with "
        "a longer process_timeout if it was still at work"
    )
