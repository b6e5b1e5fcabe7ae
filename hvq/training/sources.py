"""The images of a run of several processes: one of them looks through the data, and the others take what it found."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from hvq.config_data import DataConfig
from hvq.data import Sources, build_sources
from hvq.distributed import current_reduction
from hvq.errors import ProcessError


def build_sources_in_turn(config: DataConfig, seed: int, accelerator: Accelerator) -> Sources:
    """`build_sources`, in the first process of the run before the others, and of each machine before its others.

    What the first finds is kept in the user's cache folder, so that the others need not load all data once more. A
    cache folder that a machine has for itself is filled by its own first process.

    Args:
        config: of any kind of data.
        seed: of crops and augmentation.
        accelerator: of the processes, each of which must call this.

    Raises:
        DataError: where the images are missing, damaged, or not as the kind of data wants them.
        ProcessError: where that is so in another process.
    """
    reduction = current_reduction()
    if reduction.size == 1:
        return build_sources(config, seed)
    own_turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    sources: Sources | None = None
    fault: Exception | None = None
    for turn in range(3):
        if turn == own_turn:
            try:
                sources = build_sources(config, seed)
            except Exception as error:
                fault = error
        # Those that wait are told of a fault, rather than to wait for a process that has ended.
        faults = reduction.sum(torch.tensor([int(fault is not None)], device=accelerator.device))
        if fault is not None:
            raise fault
        if faults.item():
            raise ProcessError(
                "another process of this run could not make its images ready; see what it said, mend that, and start "
                "again"
            )
    assert sources is not None
    return sources
