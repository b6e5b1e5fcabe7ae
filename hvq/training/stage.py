"""What the stages that train share: which samples come when, what is written first, and what was done already."""

from __future__ import annotations

from typing import TypeVar

import torch

from hvq.config import OptimizationConfig, RunConfig
from hvq.data import ImageSource, TrainingStream
from hvq.data.sources import BatchSource
from hvq.distributed import Reduction
from hvq.errors import DataError
from hvq.storage import RunFolder
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.log import TrainingLog
from hvq.training.optimization import Optimization
from hvq.training.processes import describe

BatchType = TypeVar("BatchType", bound=object)


def open_stage(
    stage: str,
    config: RunConfig,
    run: RunFolder,
    checkpoint: TrainingCheckpoint,
    *,
    resumed: bool,
    says: list[str | None],
) -> TrainingLog:
    """Leave the configuration in the run folder, make ready to save, and say what begins.

    Not before everything that may be refused has been: until then an earlier run is as it was.

    Args:
        stage: its name in the log.
        config: of the run; later stages read it in the run folder.
        run: where everything lies.
        checkpoint: of the stage.
        resumed: whether training goes on from one.
        says: sentences for the person; the first is told on what it trains.
    """
    optimization = checkpoint.optimization
    is_main = optimization.accelerator.is_main_process
    if is_main:
        # Numbers that cannot be read are said now rather than after training.
        run.metrics()
    log = TrainingLog.of(stage, run, optimization, config.model_dump(mode="json"))
    if is_main:
        run.save_config(config)
    first, *others = says
    log.say(f"{first}: {describe(optimization.accelerator)}", *others, checkpoint.begin(resumed=resumed))
    return log


def stream_of(
    source: BatchSource[BatchType],
    training: OptimizationConfig,
    optimization: Optimization,
    *,
    seed: int,
    workers: int = 0,
    start_step: int | None = None,
) -> TrainingStream[BatchType]:
    """The micro-batches of this process, from a step on; by default the optimization's."""
    return TrainingStream(
        source,
        batch_size=training.batch_size,
        micro_batches=training.micro_batches,
        rank=optimization.reduction.rank,
        processes=optimization.reduction.size,
        seed=seed,
        workers=workers,
        start_step=optimization.step_number if start_step is None else start_step,
    )


def told_by_the_first(source: ImageSource, reduction: Reduction, device: torch.device, *, contents: bool) -> str:
    """`ImageSource.fingerprint`, in hexadecimal digits; of what images hold, the first process alone takes a look.

    Raises:
        DataError: in every process, where they do not all list the same images.
    """
    listed = source.fingerprint(contents=False)
    _require_same(listed, len(source), reduction, device)
    if not contents:
        return listed
    found = bytes.fromhex(source.fingerprint()) if reduction.rank == 0 else bytes(32)
    return bytes(reduction.first(torch.tensor(list(found), device=device)).tolist()).hex()


def _require_same(listed: str, images: int, reduction: Reduction, device: torch.device) -> None:
    """Each process lists the images by itself, and would read others under the same numbers without a word."""
    found = torch.zeros(reduction.size, 33, dtype=torch.int64, device=device)
    found[reduction.rank] = torch.tensor([images, *bytes.fromhex(listed)])
    everywhere = reduction.sum(found).tolist()
    others = [rank for rank, one in enumerate(everywhere) if one != everywhere[0]]
    if others:
        numbers = ", ".join(f"{everywhere[rank][0]} in process {rank}" for rank in others)
        raise DataError(
            f"all processes of a run must find the same images; of {everywhere[0][0]} in the first process, those are "
            f"others: {numbers}; have all of them read the same files, with the same settings of data, and start again"
        )
