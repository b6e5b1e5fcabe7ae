"""Every kind of prior on the codes of one run, with about as many parameters and the same time to train.

    python benchmarks/prior_kinds.py --run-dir runs/cifar10 --minutes 20 --json kinds.json

Each cell trains the prior of one level by the project's own training, for as many steps as fit into a budget of CPU
time (summed over threads), as short trainings before it tell; so its schedule of learning rates ends with the budget.
What is compared is the best look at held-out codes, in nats per code, beside the entropy of the codes' frequencies. The
run folder needs its autoencoder and codes and is left as it is. Cells are saved one by one, and a call with the same
file goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import about, best_rate, load_rows, markdown, save_rows
from prior_models import parameters

from hvq.config import PriorStageConfig, RunConfig
from hvq.errors import HVQError
from hvq.priors import Prior
from hvq.storage import RunFolder
from hvq.training import fit_prior

# By kind: for the coarsest level, whose grid is small, and for levels that are conditioned on it.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "transformer": (
        {"width": 192, "layers": 6, "heads": 6},
        {"width": 192, "layers": 6, "heads": 6},
    ),
    "pixelsnail": (
        {"width": 128, "residual_width": 128, "blocks": 2, "residual_blocks": 2, "kernel": 3},
        {"width": 96, "residual_width": 96, "blocks": 2, "residual_blocks": 2, "kernel": 5, "heads": 6},
    ),
    "pixelcnn": (
        {"width": 128, "layers": 6, "kernel": 3},
        {"width": 96, "layers": 6, "kernel": 5},
    ),
}
QUICK_SIZES: dict[str, dict[str, Any]] = {
    "transformer": {"width": 16, "layers": 1, "heads": 2},
    "pixelsnail": {"width": 16, "residual_width": 16, "blocks": 1, "residual_blocks": 1, "kernel": 3, "heads": 2},
    "pixelcnn": {"width": 16, "layers": 2, "kernel": 3},
}
LEARNING_RATES = {"transformer": 1e-3, "pixelsnail": 1e-3, "pixelcnn": 1e-3}
QUICK_MINUTES = 0.1
# Looks at held-out codes in each training; they are in the budget.
LOOKS = 10
WARMUP_STEPS = 100
# Steps of the trainings that tell how long one takes: one that is not counted, a short one and a longer one.
TRIALS = (1, 3, 13)


@dataclass(frozen=True)
class Row:
    """One trained prior; `minutes` is the budget of CPU time, `cpu_minutes` what it took."""

    kind: str
    level: str
    minutes: float
    batch: int
    parameters: int
    steps: int
    held_out_nats: float
    unigram_entropy: float
    images_per_second: float
    cpu_minutes: float


@dataclass(frozen=True)
class Training:
    """What one call of the project's own training did, and the CPU seconds that it took."""

    prior: Prior
    lines: list[dict[str, Any]]
    seconds: float

    def all_of(self, name: str) -> list[float]:
        """What its log holds under a name."""
        return [line[name] for line in self.lines if line.get(name) is not None]


def stage(kind: str, fields: dict[str, Any], steps: int, base: PriorStageConfig) -> PriorStageConfig:
    """The training of one kind: its size, and a schedule that ends at `steps`; the rest is as the run has it."""
    training = {
        **base.training.model_dump(),
        "steps": steps,
        "learning_rate": LEARNING_RATES[kind],
        "warmup_steps": min(WARMUP_STEPS, steps // 10),
        "evaluate_every": math.ceil(steps / LOOKS),
        "log_every": math.ceil(steps / (4 * LOOKS)),
        "checkpoint_every": steps,
    }
    return PriorStageConfig.model_validate({"model": {"kind": kind, **fields}, "training": training})


def train(run: RunFolder, config: RunConfig, level: str, prior: PriorStageConfig) -> Training:
    """In a folder of its own, which has the run's autoencoder and codes and goes when all is done."""
    with tempfile.TemporaryDirectory() as folder:
        own = RunFolder(folder)
        own.autoencoder.symlink_to(run.autoencoder.resolve())
        own.codes.symlink_to(run.codes.resolve())
        started = time.process_time()
        fitted = fit_prior(config.model_copy(update={"priors": {level: prior}}), own, level)
        return Training(fitted, own.lines(), time.process_time() - started)


def steps_within(seconds: float, short: tuple[int, float], longer: tuple[int, float]) -> int:
    """Steps that fit into a budget, given two trainings as (steps, seconds), each with one look at its end.

    What the short one takes beyond its steps is counted once for each look.

    >>> steps_within(100.0, (2, 6.0), (12, 16.0))
    60
    """
    each = max(1e-9, (longer[1] - short[1]) / (longer[0] - short[0]))
    look = max(0.0, short[1] - short[0] * each)
    return max(1, int((seconds - LOOKS * look) / each))


def find_steps(run: RunFolder, config: RunConfig, level: str, kind: str, fields: dict[str, Any], seconds: float) -> int:
    """Steps that fit into a budget of CPU seconds."""
    base, spent = config.prior(level), []
    for steps in TRIALS:
        # One look, at the end, as `steps_within` takes it.
        trial = stage(kind, fields, steps, base)
        training = trial.training.model_copy(update={"evaluate_every": steps})
        with redirect_stdout(io.StringIO()):
            done = train(run, config, level, trial.model_copy(update={"training": training}))
        spent.append(done.seconds)
    return steps_within(seconds, (TRIALS[1], spent[1]), (TRIALS[2], spent[2]))


def run_cell(run: RunFolder, config: RunConfig, level: str, kind: str, fields: dict[str, Any], minutes: float) -> Row:
    """Train one kind on one level within the budget."""
    steps = find_steps(run, config, level, kind, fields, 60 * minutes)
    print(f"level {level}, {kind}: {steps} steps should fit into {minutes:g} minutes of CPU time", flush=True)
    done = train(run, config, level, stage(kind, fields, steps, config.prior(level)))
    return Row(
        kind=kind,
        level=level,
        minutes=minutes,
        batch=config.prior(level).training.batch_size,
        parameters=parameters(done.prior),
        steps=steps,
        held_out_nats=min(done.all_of("held_out_nats")),
        unigram_entropy=done.all_of("unigram_entropy")[0],
        images_per_second=round(statistics.median(done.all_of("images_per_second")), 2),
        cpu_minutes=round(done.seconds / 60, 3),
    )


def sizes(kind: str, level: str, config: RunConfig, quick: bool) -> dict[str, Any]:
    """Fields of a kind on a level."""
    if quick:
        return QUICK_SIZES[kind]
    return SIZES[kind][0 if level == next(iter(config.autoencoder.levels)) else 1]


def table(rows: Sequence[Row]) -> str:
    """Markdown, level by level."""
    head = ["level", "kind", "parameters", "steps", "images/s", "CPU minutes", "nats per code", "unigram entropy"]
    lines = [
        [
            row.level,
            row.kind,
            f"{row.parameters:,}",
            f"{row.steps:,}",
            f"{row.images_per_second:,.0f}",
            f"{row.cpu_minutes:.1f} of {row.minutes:g}",
            f"{row.held_out_nats:.3f}",
            f"{row.unigram_entropy:.3f}",
        ]
        for level in dict.fromkeys(row.level for row in rows)
        for row in rows
        if row.level == level
    ]
    return markdown(head, lines)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="a run folder with `autoencoder` and `codes`")
    parser.add_argument("--json", type=Path, help="file of rows; what it holds is not trained again")
    parser.add_argument("--minutes", type=float, default=20.0, help="CPU time of each training, summed over threads")
    parser.add_argument("--batch", type=int, help="grids of each step; as the run's configuration has it by default")
    parser.add_argument("--quick", action="store_true", help="tiny priors and seconds of training: under two minutes")
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES), help="kinds")
    parser.add_argument("--levels", nargs="+", help="levels; all by default")
    return parser.parse_args(words)


def run_config(run: RunFolder, batch: int | None) -> RunConfig:
    """Of the run, with another batch size of all priors where one is given."""
    config = run.load_config()
    if batch is None:
        return config
    priors = {level: config.prior(level).model_dump() for level in config.autoencoder.levels}
    for prior in priors.values():
        prior["training"]["batch_size"] = batch
    return RunConfig.model_validate({**config.model_dump(), "priors": priors})


def run_missing(arguments: argparse.Namespace, rows: list[Row]) -> None:
    """Train the cells that are not among the rows yet, and save each with those before it."""
    run = RunFolder(arguments.run_dir)
    config = run_config(run, arguments.batch)
    minutes = QUICK_MINUTES if arguments.quick else arguments.minutes
    done = {(row.level, row.kind, row.minutes, row.batch) for row in rows}
    for level in arguments.levels or config.autoencoder.levels:
        for kind in (kind for kind in SIZES if kind in arguments.only):
            if (level, kind, minutes, config.prior(level).training.batch_size) not in done:
                fields = sizes(kind, level, config, arguments.quick)
                rows.append(run_cell(run, config, level, kind, fields, minutes))
                save_rows(arguments.json, rows)


def main(words: list[str] | None = None) -> int:
    """Train what is not there yet, and print the table."""
    arguments = parse_arguments(words)
    rows = load_rows(arguments.json, Row)
    try:
        run_missing(arguments, rows)
    except HVQError as error:
        print(error, file=sys.stderr)
        return 1
    print(about("cpu", best_rate("cpu")))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
