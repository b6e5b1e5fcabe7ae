"""The processes of a run, through accelerate."""

from __future__ import annotations

import gc
import os
import re
import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch.distributed import DistError

from hvq.config import RunConfig
from hvq.errors import ConfigurationError, ProcessError
from hvq.storage import RunFolder
from hvq.training.memory import keep_freed_memory
from hvq.training.sharding import is_sharding
from hvq.training.trackers import trackers_to_use


def make_accelerator(config: RunConfig, run: RunFolder) -> Accelerator:
    """The accelerator of a run: devices and processes as the launcher gives them, trackers as the run says.

    Raises:
        ConfigurationError: where the launcher asks for an engine other than DDP and FSDP, or a tracker that the run
            names is not installed.
    """
    _refuse_other_engines()
    trackers = trackers_to_use(config.trackers)
    keep_freed_memory()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        # Sums over processes and held-out means are float64, which Apple's GPUs do not have. And where there is no GPU,
        # accelerate has to be told, or each process that torchrun starts would take itself for the only one.
        cpu=torch.backends.mps.is_available() or not torch.accelerator.is_available(),
        # Micro-batches are counted by the training loop. A launcher's own setting would divide the loss once more, and
        # only a plugin overrules it.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=trackers,
        project_dir=str(run.path / "tensorboard"),
        kwargs_handlers=[data_parallel(), InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout))],
    )
    _shard_on_cpus(accelerator)
    return accelerator


def part() -> None:
    """End what connects the processes, while all are here: a thread that waits for another would fail at the exit.

    A model in DDP must be gone by then. Where it is the last to hold the group, Python waits in its destructor for a
    thread of the group that waits for Python, and the process never ends.
    """
    if torch.distributed.is_initialized():
        # DDP refers to itself, and so do some of the models.
        gc.collect()
        torch.distributed.destroy_process_group()


def data_parallel() -> DistributedDataParallelKwargs:
    """How DDP works here: no buffer crosses the network, since no forward writes one, and gradients are not copied."""
    # Of the names that PyTorch has for it, accelerate knows this one.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    return DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)


def _refuse_other_engines() -> None:
    for variable, engine in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if _is_set(variable):
            raise ConfigurationError(
                f"{engine} is not supported, and {variable} asks for it; take DDP, or FSDP for priors that one GPU "
                "cannot hold, as recipes/accelerate/ has them"
            )


def _shard_on_cpus(accelerator: Accelerator) -> None:
    """Take FSDP where it is asked for; of CPU processes accelerate would make DDP without a word."""
    if _is_set("ACCELERATE_USE_FSDP") and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # Where accelerate itself notes it, for every accelerator of this process.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.distributed_type = DistributedType.FSDP


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def describe(accelerator: Accelerator) -> str:
    """How many processes run, on what, and whether models lie in shards over them: what a script says first."""
    number = accelerator.num_processes
    processes = "1 process" if number == 1 else f"{number} processes"
    shards = ", in shards" if is_sharding(accelerator) else ""
    return f"{processes} on {accelerator.device.type}{shards}, precision {accelerator.mixed_precision}"


# Errors of gloo are plain ones, which name its source files, but for one.
_OF_GLOO = re.compile("gloo/|timeout caused pair closure", re.I)
# What it says, and NCCL, where the other end is gone.
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
    if not isinstance(error, DistError) and not _OF_GLOO.search(message):
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
