"""Training on several processes of this machine beside one: samples per second, and what the codebooks' step takes.

    python benchmarks/scaling.py --json scaling.json

Each process computes on one thread, on a core of its own where the system allows to choose. A step is the training
code's own, on images or codes that are made up and lie in memory: what reading them takes is measured elsewhere. All
processes of a model are started once and take turns, round by round: one process alone; two that train together with
DDP, each with the batch that the one has; and two that know nothing of each other. What the latter lose beside one,
they lose to the memory and the clock of the machine, and only the rest is lost to communication. Rates are medians.

`commit_share` is the share of the step in `CodebookStep.step`, which holds its collective; priors have none.

A call with the same file goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import about, best_rate, end, load_rows, markdown, save_rows
from torch import Tensor
from torch.nn import functional

from hvq.config import AutoencoderConfig, OptimizationConfig

# The autoencoder of the preset imagenet256-vqvae2.
LEVEL = {"width": 128, "residual_blocks": 2, "residual_width": 64, "codebook_size": 512, "code_dimension": 64}
AUTOENCODER: dict[str, Any] = {
    "channels": 3,
    "levels": {"top": {**LEVEL, "ratio": 2}, "bottom": {**LEVEL, "ratio": 4}},
    "decoder": {"width": 128, "residual_blocks": 2, "residual_width": 64},
}
TRANSFORMER: dict[str, Any] = {"codebook_size": 512, "width": 256, "layers": 6, "heads": 4, "dropout": 0.0}


@dataclass(frozen=True)
class Task:
    """What every process trains.

    Attributes:
        model: "autoencoder" or "transformer".
        size: of the images in pixels, or of the grid of codes.
        batch: samples per process and step.
        steps: in each turn.
        rounds: turns of each group.
        groups: which of `GROUPS` are measured.
    """

    model: str
    size: int
    batch: int
    steps: int
    rounds: int = 1
    groups: tuple[str, ...] = ("one", "apart", "together")


GROUPS = {"one": 1, "together": 2, "apart": 2}
TASKS = (
    Task("autoencoder", 128, 8, steps=2, rounds=9),
    Task("transformer", 16, 16, steps=1, rounds=9),
    Task("autoencoder", 256, 32, steps=1, rounds=3, groups=("one", "together")),
)
QUICK_TASKS = (
    Task("autoencoder", 32, 2, steps=1),
    Task("transformer", 4, 2, steps=1),
)


@dataclass(frozen=True)
class Row:
    """One group of processes.

    Attributes:
        communicating: whether they train one model, or each its own.
        efficiency: samples per second over those of as many single processes.
        commit_share: of the step, in the codebooks' own; None for priors.
    """

    model: str
    size: int
    batch_per_process: int
    processes: int
    communicating: bool
    samples_per_second: float
    efficiency: float
    commit_share: float | None


# --- a process that trains -------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds in a function, over all calls.

    >>> watch = Stopwatch(lambda: 3)
    >>> watch(), watch.seconds > 0
    (3, True)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, *words: Any) -> Any:
        started = time.perf_counter()
        result = self._function(*words)
        self.seconds += time.perf_counter() - started
        return result


def autoencoder_step(size: int, batch: int) -> tuple[Callable[[], Any], Stopwatch]:
    """One training step of the autoencoder, and the time in its codebook step."""
    from hvq.autoencoders import AutoencoderLoss, build_autoencoder, weights_channels_last
    from hvq.training.optimization import Losses, Optimization

    model = weights_channels_last(build_autoencoder(AutoencoderConfig.model_validate(AUTOENCODER)).train())
    optimization = Optimization(model, OptimizationConfig(), make_accelerator(), seed=0, quantizers=model.quantizers)
    loss = AutoencoderLoss()
    # Smooth, as pictures are: codes of noise would be of another kind.
    coarse = torch.rand(batch, 3, 8, 8) * 2 - 1
    images = functional.interpolate(coarse, (size, size), mode="bicubic").contiguous(memory_format=torch.channels_last)

    def losses(images: Tensor) -> Losses:
        result = optimization.wrapped(images, None)
        optimization.codebooks.add(result.levels)
        return loss(result, images)

    commit = Stopwatch(optimization.codebooks.step)
    optimization.codebooks.step = commit  # type: ignore[method-assign]
    return lambda: optimization.step([images], losses), commit


def transformer_step(size: int, batch: int) -> tuple[Callable[[], Any], Stopwatch | None]:
    """One training step of a prior, which has no codebooks."""
    from hvq.priors import Condition, TransformerPrior
    from hvq.training.optimization import Losses, Optimization

    prior = TransformerPrior(**TRANSFORMER).train()
    optimization = Optimization(prior, OptimizationConfig(), make_accelerator(), seed=0)
    codes = torch.randint(TRANSFORMER["codebook_size"], (batch, size, size))

    def losses(codes: Tensor) -> Losses:
        logits = optimization.wrapped(codes, Condition()).float()
        return functional.cross_entropy(logits.flatten(0, -2), codes.flatten()), {}

    return lambda: optimization.step([codes], losses), None


def make_accelerator() -> Any:
    """On the CPU, of as many processes as the environment says."""
    from accelerate import Accelerator

    from hvq.training.processes import data_parallel

    return Accelerator(cpu=True, kwargs_handlers=[data_parallel()])


STEPS = {"autoencoder": autoencoder_step, "transformer": transformer_step}


def work(task: Task, core: int) -> None:
    """Train as many steps as each line of the standard input says; answer with seconds, and seconds of the commit."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    from hvq.training.processes import part

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step, commit = STEPS[task.model](task.size, task.batch)
    step()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        committed = commit.seconds if commit else 0.0
        started = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = time.perf_counter() - started
        print(json.dumps([seconds, commit.seconds - committed if commit else None]), flush=True)
    del step, commit
    part()


# --- groups of them --------------------------------------------------------------------------------------------------


class Workers:
    """Processes that train, and stand still between turns.

    Args:
        task: what each trains.
        group: a key of `GROUPS`.
    """

    def __init__(self, task: Task, group: str) -> None:
        self._task = task
        port = free_port()
        self._processes = [self._start(group, rank, port) for rank in range(GROUPS[group])]
        try:
            for process in self._processes:
                _answer(process)
        except RuntimeError:
            for process in self._processes:
                process.kill()
            raise

    def turn(self) -> tuple[float, float | None]:
        """Seconds per step of the slowest, and those of its commit."""
        for process in self._processes:
            assert process.stdin
            process.stdin.write(f"{self._task.steps}\n")
            process.stdin.flush()
        seconds, commit = max(_answer(process) for process in self._processes)
        return seconds / self._task.steps, None if commit is None else commit / self._task.steps

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            end(process)

    def _start(self, group: str, rank: int, port: int) -> subprocess.Popen[str]:
        task = self._task
        words = [task.model, str(task.size), str(task.batch), str(task.steps), str(rank)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if group == "together":
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(GROUPS[group]),
                "LOCAL_WORLD_SIZE": str(GROUPS[group]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        return subprocess.Popen(
            [sys.executable, __file__, "--work", *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process ended with exit code {process.wait()}")
    return json.loads(line)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def measure(task: Task) -> list[Row]:
    """All groups of a task, in turns."""
    groups: dict[str, Workers] = {}
    try:
        for name in task.groups:
            groups[name] = Workers(task, name)
        turns: dict[str, list[tuple[float, float | None]]] = {name: [] for name in groups}
        for _ in range(task.rounds):
            for name, workers in groups.items():
                turns[name].append(workers.turn())
    finally:
        for workers in groups.values():
            workers.close()
    alone = statistics.median(seconds for seconds, _ in turns["one"])
    return [_row(task, name, alone, turns[name]) for name in groups]


def _row(task: Task, group: str, alone: float, turns: list[tuple[float, float | None]]) -> Row:
    seconds = statistics.median(seconds for seconds, _ in turns)
    shares = [commit / step for step, commit in turns if commit is not None]
    return Row(
        model=task.model,
        size=task.size,
        batch_per_process=task.batch,
        processes=GROUPS[group],
        communicating=group == "together",
        samples_per_second=GROUPS[group] * task.batch / seconds,
        efficiency=alone / seconds,
        commit_share=statistics.median(shares) if shares else None,
    )


# --- the table -------------------------------------------------------------------------------------------------------


def print_rows(rows: list[Row]) -> None:
    """The table that README.md shows."""
    head = ["model", "size", "batch per process", "processes", "samples/s", "efficiency", "share of the codebook step"]
    lines = [
        [
            row.model,
            f"{row.size}x{row.size}",
            str(row.batch_per_process),
            f"{row.processes}" + (", apart" if row.processes > 1 and not row.communicating else ""),
            f"{row.samples_per_second:.3g}",
            f"{row.efficiency:.3f}",
            "" if row.commit_share is None else f"{100 * row.commit_share:.2f} %",
        ]
        for row in rows
    ]
    print(markdown(head, lines))


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows are kept here, and not measured again")
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="models to measure")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure what is not there yet, and print the table."""
    arguments = parse_arguments(words)
    if arguments.work:
        model, *numbers = arguments.work
        size, batch, steps, core = map(int, numbers)
        work(Task(model, size, batch, steps), core)
        return 0
    rows: list[Row] = load_rows(arguments.json, Row)
    for task in QUICK_TASKS if arguments.quick else TASKS:
        wanted = not arguments.only or task.model in arguments.only
        if wanted and not any((row.model, row.size) == (task.model, task.size) for row in rows):
            rows += measure(task)
            save_rows(arguments.json, rows)
    print(about("cpu", best_rate("cpu")))
    print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
