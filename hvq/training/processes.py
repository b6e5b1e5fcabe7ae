"""The processes of a run, through accelerate."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available

from hvq.config import RunConfig
from hvq.storage import RunFolder


def make_accelerator(config: RunConfig, run: RunFolder) -> Accelerator:
    """The accelerator of a run: devices and processes as the launcher gives them, TensorBoard where it is installed."""
    trackers = ["tensorboard"] if is_tensorboard_available() else []
    return Accelerator(
        mixed_precision=config.mixed_precision,
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
