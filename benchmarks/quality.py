"""Reconstruction error beside public implementations: same images, same batches, same number of steps, same code bits.

    python benchmarks/quality.py --data FOLDER --peer DIR --json quality.json

Sides, all of 1.39 M parameters and codebook entries, two levels of 512 codes each:

* `hvq`: preset `cifar10-vqvae2`, which is the project's defaults but for steps and learning rate;
* `vqp`: the same autoencoder and the same training with vector-quantize-pytorch's `VectorQuantize` in place of the
  quantizers, at its defaults; `vqp, best`: with decay 0.99, a codebook that begins as k-means, and dead codes replaced.
  Its latents are quantized from the first step on, since its codebooks are set by the first batch that they see;
* `rosinality`: model and training step of rosinality/vq-vae-2-pytorch as they are (`--peer`, a checkout of it).

Data: CIFAR-10 at 32x32, batch 128, 80 codes an image; BSDS500 at 128x128, batch 16, 1,280 codes an image.
Each side trains at three learning rates with the first seed; the one of least final error is then taken for the other
seeds. Errors are mean squared errors on [0, 1] over the whole held-out split, in float32; while latents pass
unquantized, as in the first fifth of the project's training, none is taken. `usage` is the share of the codes of both
levels that occur; `seconds` are those of the steps alone, with what a side does before the first, as the processor
counts them for this process alone, on one thread unless `--threads` says otherwise. Of all sides the process keeps
freed memory, as the project's training has it.

Cells (data, side, learning rate, seed) are saved one by one, and a call with the same file goes on where the last one
stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from measuring import computing_threads, load_rows, markdown, save_rows
from quality_models import OWN, PACKAGE, PACKAGE_BEST, PEER, Contender, make_contender
from torch import Tensor
from train_step import reason_without_peer

from hvq.config import RunConfig
from hvq.config_loading import load_run_config
from hvq.data import Batch, Sources, TrainingStream, build_sources, ordered_batches
from hvq.data.pixels import bytes_to_model
from hvq.errors import HVQError
from hvq.training.memory import keep_freed_memory

PRESET = Path(__file__).parent.parent / "recipes" / "configs" / "cifar10-vqvae2.yaml"
SIDES = (OWN, PACKAGE, PACKAGE_BEST, PEER)
SEEDS = (0, 1, 2)
OWN_RATES, PEER_RATES = (1e-3, 2e-3, 4e-3), (3e-4, 1e-3, 2e-3)
LINES = 10
CODES = 512


@dataclass(frozen=True)
class Row:
    """A point of the curve of one training."""

    implementation: str
    data: str
    seed: int
    learning_rate: float
    steps: int
    step: int
    seconds: float
    mse: float
    usage: float


@dataclass(frozen=True)
class Cell:
    """One training."""

    data: str
    implementation: str
    learning_rate: float
    seed: int
    steps: int


# --- what is trained on ----------------------------------------------------------------------------------------------


def config_of(cell: Cell, folder: Path) -> RunConfig:
    """The run that a cell is, for the sides that are the project's training."""
    # As short as the quick run has it: the schedule is that of the steps.
    words = [f"autoencoder_training.{name}={value}" for name, value in _training(cell).items()]
    return load_run_config(PRESET, [*_data_words(cell.data, folder), *words, f"seed={cell.seed}"])


def _training(cell: Cell) -> dict[str, Any]:
    batch_size = 128 if cell.data == "cifar10" else 16
    warmup = max(1, cell.steps // 20)
    return {
        "steps": cell.steps,
        "batch_size": batch_size,
        "learning_rate": cell.learning_rate,
        "warmup_steps": warmup,
    }


def _data_words(data: str, folder: Path) -> list[str]:
    if data == "cifar10":
        return [f"data.train={folder}/cifar10-train.safetensors", f"data.validation={folder}/cifar10-val.safetensors"]
    return ["data.kind=folder", f"data.path={folder}/bsds-train", "data.size=[128, 128]", "data.crop=random"]


def batches(config: RunConfig, sources: Sources) -> Iterator[Batch]:
    """The same for all sides, without end."""
    batch_size = config.autoencoder_training.batch_size
    return (batch for step in TrainingStream(sources.train, batch_size=batch_size, seed=config.seed) for batch in step)


# --- a cell ----------------------------------------------------------------------------------------------------------


def train(cell: Cell, config: RunConfig, sources: Sources, peer: Path | None, held_out: int | None) -> list[Row]:
    """Train one side, and look at held-out images ten times, but not before there are codes."""
    rows: list[Row] = []
    contender = make_contender(cell.implementation, config, peer)
    seconds = -time.process_time()
    contender.begin(batches(config, sources))
    seconds += time.process_time()
    for step, batch in enumerate(islice(batches(config, sources), cell.steps), start=1):
        seconds -= time.process_time()
        contender.step(batch)
        seconds += time.process_time()
        due = step % max(1, cell.steps // LINES) == 0 or step == cell.steps
        if due and not any(getattr(module, "continuous", False) for module in contender.model.modules()):
            error, usage = measure(contender, sources, held_out)
            point = {"step": step, "seconds": round(seconds, 2), "mse": error, "usage": usage}
            rows.append(
                Row(cell.implementation, cell.data, cell.seed, cell.learning_rate, cell.steps, **point)  # type: ignore[arg-type]
            )
    return rows


@torch.no_grad()
def measure(contender: Contender, sources: Sources, held_out: int | None) -> tuple[float, float]:
    """Mean squared error on [0, 1], and the share of the codes of all levels that occur, over held-out images."""
    contender.model.eval()
    squared, count, used = 0.0, 0, dict[str, Tensor]()
    for batch in ordered_batches(sources.validation, chunk_size=64):
        pixels = bytes_to_model(batch.images)
        restored, codes = contender.restore(pixels)
        squared += float((restored - pixels).double().square().sum()) / 4
        count += pixels.numel()
        for level, code in codes.items():
            used.setdefault(level, torch.zeros(CODES, dtype=torch.bool))[code.flatten()] = True
        if held_out is not None and int(batch.indices[-1]) + 1 >= held_out:
            break
    contender.model.train()
    return squared / count, float(torch.stack(list(used.values())).double().mean())


# --- which cells -----------------------------------------------------------------------------------------------------


def cells_left(rows: Sequence[Row], arguments: argparse.Namespace) -> Iterator[Cell]:
    """The cells that have no rows yet, in an order in which all sides move on together; `rows` may grow meanwhile."""
    for data in arguments.on:
        steps = arguments.steps or {"cifar10": 1000, "bsds": 300}[data]
        sides = [side for side in SIDES if side in arguments.only]
        for tried in range(len(arguments.rates or OWN_RATES)):
            for side in sides:
                rate = (arguments.rates or (PEER_RATES if side == PEER else OWN_RATES))[tried]
                yield from _missing(rows, Cell(data, side, rate, SEEDS[0], steps))
        for seed in arguments.seeds:
            for side in sides:
                yield from _missing(rows, Cell(data, side, best_rate_of(rows, data, side, steps), seed, steps))


def _missing(rows: Sequence[Row], cell: Cell) -> list[Cell]:
    return [] if any(_cell_of(row) == cell for row in rows) else [cell]


def _cell_of(row: Row) -> Cell:
    return Cell(row.data, row.implementation, row.learning_rate, row.seed, row.steps)


def best_rate_of(rows: Sequence[Row], data: str, side: str, steps: int) -> float:
    """The learning rate of least final error with the first seed."""
    first = (data, side, SEEDS[0], steps, steps)
    ends = [row for row in rows if (row.data, row.implementation, row.seed, row.steps, row.step) == first]
    # An error that is not a number is no error that is least.
    return min(ends, key=lambda row: row.mse if row.mse == row.mse else float("inf")).learning_rate


# --- output ----------------------------------------------------------------------------------------------------------


def kept_rows(rows: Sequence[Row], data: str, steps: int) -> dict[str, list[Row]]:
    """By side, the rows of all seeds at its best learning rate."""
    sides = [side for side in SIDES if any((row.data, row.implementation) == (data, side) for row in rows)]
    return {
        side: [
            row
            for row in rows
            if (row.data, row.implementation, row.steps) == (data, side, steps)
            and row.learning_rate == best_rate_of(rows, data, side, steps)
        ]
        for side in sides
    }


def table(sides: dict[str, list[Row]], steps: int) -> str:
    """Markdown: final error, mean and deviation over seeds, seconds and usage of each side."""
    lines = []
    for side, rows in sides.items():
        ends = [row for row in rows if row.step == steps]
        errors = [row.mse for row in ends]
        deviation = f"{stdev(errors):.1e}" if len(errors) > 1 else "-"
        lines.append(
            [
                side,
                f"{ends[0].learning_rate:g}",
                str(len(ends)),
                f"{mean(errors):.6f}",
                deviation,
                f"{mean(row.seconds for row in ends):.0f}",
                f"{mean(row.usage for row in ends):.3f}",
            ]
        )
    return markdown(["side", "learning rate", "seeds", "error", "deviation", "seconds", "usage"], lines)


def curve_table(sides: dict[str, list[Row]]) -> str:
    """Markdown: mean error over seeds, and seconds, at every line of the curves."""
    steps = sorted({row.step for rows in sides.values() for row in rows})
    lines = [
        [str(step), *(_point([row for row in rows if row.step == step]) for rows in sides.values())] for step in steps
    ]
    return markdown(["step", *sides], lines)


def _point(rows: list[Row]) -> str:
    return f"{mean(row.mse for row in rows):.5f} ({mean(row.seconds for row in rows):.0f} s)" if rows else "-"


def verdict(sides: dict[str, list[Row]], steps: int) -> str:
    """How far the error of `hvq` is below that of the best other side, and when it is first as low as that."""
    others = {side: rows for side, rows in sides.items() if side != OWN}
    if OWN not in sides or not others:
        return ""
    ends = {side: mean(row.mse for row in rows if row.step == steps) for side, rows in sides.items()}
    best = min(others, key=lambda side: ends[side])
    seconds = {side: mean(row.seconds for row in rows if row.step == steps) for side, rows in sides.items()}
    reached = [step for step in sorted({row.step for row in sides[OWN]}) if _mean_at(sides[OWN], step) <= ends[best]]
    when = "is not reached"
    if reached:
        own = mean(row.seconds for row in sides[OWN] if row.step == reached[0])
        when = f"is reached after {reached[0]} steps, {own:.0f} s, {own / seconds[best]:.2f} of its time"
    return (
        f"{OWN}'s error is {1 - ends[OWN] / ends[best]:+.1%} below that of the best other side, {best}, in "
        f"{seconds[OWN] / seconds[best]:.2f} of its seconds; that side's final error {when}"
    )


def _mean_at(rows: Sequence[Row], step: int) -> float:
    return mean(row.mse for row in rows if row.step == step)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10-*.safetensors and bsds-train/")
    parser.add_argument("--peer", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--json", type=Path, help="file of rows; cells that it holds are not trained again")
    parser.add_argument("--on", nargs="+", choices=["cifar10", "bsds"], default=["cifar10", "bsds"], help="data")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES), help="sides")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds at the best learning rate")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates of all sides; three of each by default")
    parser.add_argument("--threads", type=int, default=1, help="that compute; seconds are those of all together")
    parser.add_argument("--steps", type=int, help="of each training; 1,000 on cifar10 and 300 on bsds by default")
    parser.add_argument(
        "--quick", action="store_true", help="20 steps on cifar10, one seed and rate, 256 images looked at"
    )
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.on, arguments.seeds, arguments.rates, arguments.steps = ["cifar10"], [0], [2e-3], 20
    return arguments


def main(words: list[str] | None = None) -> int:
    """Train the cells that are not there yet, and print the tables."""
    arguments = parse_arguments(words)
    reason = reason_without_peer(arguments.peer)
    if PEER in arguments.only and reason:
        print(f"skipped: {PEER}: {reason}", file=sys.stderr)
        arguments.only = [side for side in arguments.only if side != PEER]
    keep_freed_memory()
    rows = load_rows(arguments.json, Row)
    held_out = 256 if arguments.quick else None
    for cell in cells_left(rows, arguments):
        try:
            config = config_of(cell, arguments.data)
            sources = build_sources(config.data, config.seed)
        except HVQError as error:
            print(error, file=sys.stderr)
            return 1
        with computing_threads(arguments.threads):
            rows += train(cell, config, sources, arguments.peer, held_out)
        save_rows(arguments.json, rows)
        print(f"{cell}: {rows[-1].mse:.6f} after {rows[-1].seconds:.0f} s, usage {rows[-1].usage:.3f}", flush=True)
    for data, steps in dict.fromkeys((row.data, row.steps) for row in rows):
        sides = kept_rows(rows, data, steps)
        print(f"\n{data}, {steps} steps\n\n{table(sides, steps)}\n\n{curve_table(sides)}\n\n{verdict(sides, steps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
