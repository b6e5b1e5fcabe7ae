"""The processes of a run, through accelerate."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available

from hvq.config import RunConfig
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
    )


def describe(accelerator: Accelerator) -> str:
    """How many processes run, and on what: what a script says first."""
    number = accelerator.num_processes
    processes = "1 process" if number == 1 else f"{number} processes"
    return f"{processes} on {accelerator.device.type}, precision {accelerator.mixed_precision}"
