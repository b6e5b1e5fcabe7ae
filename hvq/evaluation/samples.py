"""Samples of a run, on disk."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tqdm import tqdm

from hvq.config import RunConfig
from hvq.distributed import Reduction
from hvq.evaluation.generation import Generated, generate
from hvq.evaluation.pictures import sample_grid
from hvq.files import write_folder, write_tensors
from hvq.priors import SamplingOptions
from hvq.storage import Hierarchy, RunFolder

TENSORS = "samples.safetensors"
GRID = "samples.png"


def class_labels(num_classes: int, per_class: int) -> list[int]:
    """`per_class` labels of each class, class by class; as many times -1 without classes.

    >>> class_labels(2, 3)
    [0, 0, 0, 1, 1, 1]
    """
    return [label for label in (range(num_classes) if num_classes else [-1]) for _ in range(per_class)]


def draw_samples(
    config: RunConfig,
    hierarchy: Hierarchy,
    labels: list[int],
    *,
    reduction: Reduction,
    seed: int | None = None,
    what: str = "samples",
) -> Generated:
    """Samples of some classes, with a progress bar in codes per second on the first process's terminal.

    Args:
        config: of the run; `priors.<level>.sampling` says how codes are drawn.
        hierarchy: with a prior for every level.
        labels: a class for each sample.
        reduction: over the processes that share the work.
        seed: of the noise; the run's by default.
        what: is drawn, for the bar.
    """
    chunks = math.ceil(math.ceil(len(labels) / config.chunk_size) / reduction.size)
    codes_per_position = config.chunk_size * reduction.size
    positions = sum(math.prod(grid) for grid in hierarchy.grids.values())
    disable = None if reduction.rank == 0 else True
    with tqdm(
        total=chunks * positions * codes_per_position, desc=what, unit="code", unit_scale=True, disable=disable
    ) as bar:

        def after_position() -> None:
            bar.update(codes_per_position)

        return generate(
            hierarchy,
            samples=range(len(labels)),
            labels=labels,
            seed=config.seed if seed is None else seed,
            chunk_size=config.chunk_size,
            options={name: SamplingOptions(**config.prior(name).sampling.model_dump()) for name in hierarchy.priors},
            reduction=reduction,
            after_position=after_position,
        )


def write_samples(folder: Path, generated: Generated, labels: list[int], classes: tuple[str, ...]) -> None:
    """Leave samples as one safetensors file (images, labels, codes by level) and one picture."""
    tensors = {"images": generated.images, "labels": torch.tensor(labels, dtype=torch.int64)}
    tensors |= {f"codes.{name}": codes for name, codes in generated.codes.items()}
    grid = sample_grid(generated.images, torch.tensor(labels) if classes else None, classes or None)

    def write(partial: Path) -> None:
        write_tensors(partial / TENSORS, tensors)
        grid.save(partial / GRID)

    write_folder(folder, write)


def sample_run(
    config: RunConfig,
    run: RunFolder,
    hierarchy: Hierarchy,
    *,
    reduction: Reduction,
    labels: list[int] | None = None,
    seed: int | None = None,
) -> Generated:
    """Draw the samples that a run's configuration asks for, and leave them in the run folder.

    Args:
        config: of the run.
        run: where everything lies.
        hierarchy: with a prior for every level.
        reduction: over the processes that share the work.
        labels: classes to draw; by default `sampling.samples_per_class` of each.
        seed: of the noise; the run's by default.
    """
    if labels is None:
        labels = class_labels(len(hierarchy.classes), config.sampling.samples_per_class)
    generated = draw_samples(config, hierarchy, labels, reduction=reduction, seed=seed)
    if reduction.rank == 0:
        write_samples(run.samples, generated, labels, hierarchy.classes)
    return generated
