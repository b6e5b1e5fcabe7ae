"""Sampling from priors beside other implementations, on the same machine in one process.

    python benchmarks/sampling.py --peer FOLDER --json sampling.json

One row is one batch of whole grids of codes, drawn ones included. Implementations of a model take turns, and the median
is printed. `hvq` is the project's own cached sampling; `hvq-naive` runs the same prior in full for each code; `peer` is
the loop of rosinality/vq-vae-2-pytorch, from a checkout of it; `transformers` is `LlamaForCausalLM.generate` with its
cache. The slow two are timed at a few positions and extrapolated: the naive one from the mean, the peer, whose cost
hangs on the row alone, by straight lines between the rows measured.

`times_floor` is seconds per code position over the larger of two: the parameters read once at the best rate at which
memory is read in the same run, and 2 operations for each parameter and sample at the best float32 rate. Parameters in
tables that are only gathered from do not count. A call with the same file goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import about, best_bandwidth, best_rate, load_rows, markdown, save_rows, timed
from prior_models import (
    CODEBOOK_SIZE,
    GRIDS,
    MODELS,
    QUICK_GRIDS,
    Grid,
    build_own,
    build_peer,
    condition_for,
    nearest_size,
    on_meta,
    parameters,
    parameters_in_products,
    peer_inputs,
    random_codes,
    reason_without_peer,
)
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config_loading import load_run_config
from hvq.priors import Condition, Prior, sample_level

PRESET = Path(__file__).parents[1] / "recipes" / "configs" / "imagenet256-vqvae2.yaml"
# The project's own ways to draw: further arguments of `sample_level` by implementation name, the default first.
OWN: dict[str, dict[str, Any]] = {"hvq": {}}
CLASSES = 10
WHOLE_PATH = "whole-path"
WHOLE_PATH_BATCH = 16
NOTE = """hvq-naive and peer are extrapolated to the whole grid: hvq-naive from two positions, peer from one position of
each of five rows, by straight lines between them. Parameters in tables that are only gathered from do not count in the
floor."""


@dataclass(frozen=True)
class Cell:
    """What is measured of a model: batches, implementations beside the own ones, and turns of each."""

    batches: tuple[int, ...]
    others: tuple[str, ...]
    turns: int


CELLS = {
    "pixelsnail-top": Cell((1, 16), ("hvq-naive", "peer"), turns=3),
    "pixelsnail-bottom": Cell((16,), ("peer",), turns=1),
    "transformer-85m": Cell((1, 16), (), turns=3),
    "transformer-26m": Cell((1, 16), ("transformers",), turns=5),
}


@dataclass(frozen=True)
class Row:
    """One measurement; `seconds_per_batch` is a median, `times_floor` the ratio of a position's share to its floor."""

    implementation: str
    model: str
    grid: str
    batch: int
    parameters: int
    seconds_per_batch: float
    codes_per_second: float
    times_floor: float | None


@dataclass(frozen=True)
class Machine:
    """The best rates of the run, in float32 operations and in bytes a second."""

    rate: float
    bandwidth: float

    def floors(self, in_products: int, batch: int) -> tuple[float, float]:
        """Least seconds of one position of a batch: for reading the parameters, and for the arithmetic."""
        return 4 * in_products / self.bandwidth, 2 * in_products * batch / self.rate


@dataclass(frozen=True)
class Task:
    """One batch of grids to be drawn from one model."""

    model: str
    grid: Grid
    batch: int
    device: str
    peer: Path | None = None

    @property
    def label(self) -> str:
        """As it is printed."""
        return f"{self.model}, batch {self.batch}"


@dataclass(frozen=True)
class Contender:
    """An implementation, ready to draw: the model, and the seconds that a whole batch takes in turn i."""

    model: nn.Module
    seconds: Callable[[int], float]


# --- the project's own -----------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Ends the drawing of a grid before it is whole."""


Draw = Callable[..., Tensor]


def own_sampler(prior: Prior, condition: Condition, grid: Grid, batch: int, name: str) -> Draw:
    """Draws a batch of whole grids."""
    return partial(sample_level, prior, condition, grid, level="top", samples=list(range(batch)), **OWN[name])


def begin(draw: Draw, positions: int) -> None:
    """Draw the first positions only."""
    left = itertools.count(positions - 1, -1)

    def stop() -> None:
        if next(left) == 0:
            raise _Enough

    with suppress(_Enough):
        draw(after_position=stop)


def warm_up(draw: Draw, grid: Grid, device: str, what: str) -> None:
    """What compiles at first use does so now, through the first row and into the second."""
    first, second = (timed(lambda: begin(draw, grid[1] + 2), device) for _ in range(2))
    print(f"{what}: {max(0.0, first - second):.1f} s of compilation and other first use, not counted", flush=True)


def own_contender(task: Task, name: str) -> Contender:
    """Cached sampling, measured as a whole."""
    prior = build_own(task.model).to(task.device).eval()
    condition = condition_for(task.model, task.grid, task.batch, task.device)
    draw = own_sampler(prior, condition, task.grid, task.batch, name)
    warm_up(draw, task.grid, task.device, f"{task.label} by {name}")
    return Contender(prior, lambda turn: timed(draw, task.device))


def naive_contender(task: Task) -> Contender:
    """The same prior in full for each code, at two positions for each turn."""
    prior = build_own(task.model).to(task.device).eval()
    condition = condition_for(task.model, task.grid, task.batch, task.device)
    codes = random_codes(task.grid, task.batch, task.device)

    @torch.no_grad()
    def step(position: int) -> None:
        row, column = divmod(position, task.grid[1])
        logits = prior(codes, condition)[:, row, column]
        codes[:, row, column] = logits.softmax(dim=1).multinomial(1)[:, 0]

    def seconds(turn: int) -> float:
        positions = spread(math.prod(task.grid), 2)
        each = [timed(partial(step, position), task.device) for position in positions]
        return statistics.mean(each) * math.prod(task.grid)

    step(0)
    return Contender(prior, seconds)


# --- others ----------------------------------------------------------------------------------------------------------


def spread(length: int, count: int) -> list[int]:
    """Up to `count` of 0 .. length - 1, evenly, both ends among them.

    >>> spread(32, 5)
    [0, 8, 16, 24, 31]
    """
    return sorted({min(length - 1, length * i // max(1, count - 1)) for i in range(count)})


def whole_grid_seconds(seconds_by_row: Mapping[int, float], grid: Grid) -> float:
    """Seconds of a whole grid from those of one position of some rows, by straight lines between the rows.

    >>> whole_grid_seconds({0: 1.0, 2: 3.0, 4: 3.0}, (5, 2))
    24.0
    """
    rows = sorted(seconds_by_row)
    each = np.interp(np.arange(grid[0]), rows, [seconds_by_row[row] for row in rows])
    return float(each.sum()) * grid[1]


def peer_contender(task: Task) -> Contender:
    """A forward over all rows so far for each code, timed at one position of five rows in each turn."""
    assert task.peer is not None
    model = build_peer(task.model, task.grid, task.peer).to(task.device).eval()
    codes = random_codes(task.grid, task.batch, task.device)
    inputs = peer_inputs(task.model, task.grid, task.batch, task.device)
    kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(row: int, column: int) -> None:
        logits, _ = model(codes[:, : row + 1], cache=kept, **inputs)
        codes[:, row, column] = logits[:, :, row, column].softmax(dim=1).multinomial(1)[:, 0]

    def seconds(turn: int) -> float:
        column = spread(task.grid[1], 3)[turn % 3]
        by_row = {row: timed(partial(step, row, column), task.device) for row in spread(task.grid[0], 5)}
        return whole_grid_seconds(by_row, task.grid)

    # It encodes its condition with the first code and keeps it.
    step(0, 0)
    return Contender(model, seconds)


def build_llama(model: str, grid: Grid) -> nn.Module:
    """Llama of the width, layers, heads and parameters of one of the project's transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = MODELS[model]

    def build(size: int) -> nn.Module:
        config = LlamaConfig(
            vocab_size=CODEBOOK_SIZE,
            hidden_size=fields["width"],
            num_hidden_layers=fields["layers"],
            num_attention_heads=fields["heads"],
            intermediate_size=64 * size,
            max_position_embeddings=1 + math.prod(grid),
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )
        return LlamaForCausalLM(config)

    target = parameters(on_meta(lambda: build_own(model)))
    return build(nearest_size(lambda size: on_meta(lambda: build(size)), target))


def transformers_contender(task: Task) -> Contender:
    """`generate` of transformers, measured as a whole."""
    model: Any = build_llama(task.model, task.grid).to(task.device).eval()
    start = torch.zeros(task.batch, 1, dtype=torch.int64, device=task.device)

    def draw(length: int) -> None:
        drawn = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            max_new_tokens=length,
            min_new_tokens=length,
            pad_token_id=0,
            use_cache=True,
        )
        assert drawn.shape[1] == 1 + length

    draw(task.grid[1] + 2)
    return Contender(model, lambda turn: timed(partial(draw, math.prod(task.grid)), task.device))


OTHERS: dict[str, Callable[[Task], Contender]] = {
    "hvq-naive": naive_contender,
    "peer": peer_contender,
    "transformers": transformers_contender,
}


def make_contender(task: Task, name: str) -> Contender:
    """An implementation by its name."""
    return own_contender(task, name) if name in OWN else OTHERS[name](task)


def reason_to_skip(name: str, peer: Path | None) -> str | None:
    """Why an implementation is left out; None where it is not."""
    if name == "peer":
        return reason_without_peer(peer)
    if name == "transformers" and importlib.util.find_spec("transformers") is None:
        return "the package transformers is not installed"
    return None


# --- measuring -------------------------------------------------------------------------------------------------------


def make_row(task: Task, name: str, contender: Contender, seconds: float, machine: Machine) -> Row:
    """Seconds of one batch as a row; both parts of the floor are printed."""
    reading, arithmetic = machine.floors(parameters_in_products(contender.model), task.batch)
    positions = math.prod(task.grid)
    print(
        f"{task.label} by {name}: {seconds:.2f} s; {1e3 * seconds / positions:.2f} ms a position; "
        f"floors: reading {1e3 * reading:.2f} ms, arithmetic {1e3 * arithmetic:.2f} ms",
        flush=True,
    )
    return Row(
        implementation=name,
        model=task.model,
        grid=grid_text(task.grid),
        batch=task.batch,
        parameters=parameters(contender.model),
        seconds_per_batch=round(seconds, 4),
        codes_per_second=round(task.batch * positions / seconds, 2),
        times_floor=round(seconds / positions / max(reading, arithmetic), 3),
    )


def measure(task: Task, names: Iterable[str], turns: int, machine: Machine) -> list[Row]:
    """All implementations that are named and can be had, on one task."""
    contenders: dict[str, Contender] = {}
    for name in names:
        if reason := reason_to_skip(name, task.peer):
            print(f"skipped: {task.label} by {name}: {reason}", file=sys.stderr)
            continue
        contenders[name] = make_contender(task, name)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        for name, contender in contenders.items():
            seconds[name].append(contender.seconds(turn))
    return [
        make_row(task, name, contender, statistics.median(seconds[name]), machine)
        for name, contender in contenders.items()
    ]


def grid_text(grid: Sequence[int]) -> str:
    """As in `32x32`."""
    return "x".join(map(str, grid))


# --- from class to pixels --------------------------------------------------------------------------------------------


def draw_level(level: str, condition: Condition, grid: Grid, device: str, machine: Machine) -> tuple[Row, Tensor]:
    """The codes of one level of all images, and how long they took."""
    task = Task(f"{WHOLE_PATH}/{level}", grid, WHOLE_PATH_BATCH, device)
    prior = build_own(f"pixelsnail-{level}", classes=CLASSES).to(device).eval()
    draw = own_sampler(prior, condition, grid, task.batch, "hvq")
    warm_up(draw, grid, device, f"{task.label} by hvq")
    codes: list[Tensor] = []
    seconds = timed(lambda: codes.append(draw()), device)
    return make_row(task, "hvq", Contender(prior, lambda turn: seconds), seconds, machine), codes[0]


@torch.no_grad()
def decode(codes: Mapping[str, Tensor], device: str) -> Row:
    """Codes to pixels, by the autoencoder of the preset with fresh weights."""
    model: Autoencoder = build_autoencoder(load_run_config(PRESET).autoencoder).to(device).eval()
    model.decode({name: code[:1] for name, code in codes.items()})
    images: list[Tensor] = []
    seconds = timed(lambda: images.append(model.decode(codes)), device)
    return Row(
        implementation="hvq",
        model=f"{WHOLE_PATH}/decode",
        grid=grid_text(images[0].shape[2:]),
        batch=WHOLE_PATH_BATCH,
        parameters=parameters(model),
        seconds_per_batch=round(seconds, 4),
        codes_per_second=round(sum(code.numel() for code in codes.values()) / seconds, 2),
        times_floor=None,
    )


def whole_path(grids: Mapping[str, Grid], device: str, machine: Machine) -> list[Row]:
    """Images of a class: codes of the top, of the bottom given the top, and pixels given both."""
    labels = torch.arange(WHOLE_PATH_BATCH, device=device) % CLASSES
    top_row, top = draw_level("top", Condition(labels=labels), grids["pixelsnail-top"], device, machine)
    condition = Condition(codes={"top": top}, labels=labels)
    bottom_row, bottom = draw_level("bottom", condition, grids["pixelsnail-bottom"], device, machine)
    return [top_row, bottom_row, decode({"top": top, "bottom": bottom}, device)]


def whole_path_rows(rows: Sequence[Row], grids: Mapping[str, Grid]) -> list[Row]:
    """The three of a call with the same grids; none where there are none."""
    first = (f"{WHOLE_PATH}/top", grid_text(grids["pixelsnail-top"]))
    return next(([*rows[i : i + 3]] for i, row in enumerate(rows) if (row.model, row.grid) == first), [])


def whole_path_text(rows: Sequence[Row]) -> str:
    """How long it took, and where the time went."""
    whole = sum(row.seconds_per_batch for row in rows)
    shares = ", ".join(f"{row.model.split('/')[1]} {100 * row.seconds_per_batch / whole:.0f} %" for row in rows)
    images = f"{rows[-1].batch} images of {rows[-1].grid}"
    return f"from class to pixels: {images} in {whole / 60:.1f} minutes: {shares}"


# --- output ----------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Markdown, with the ratio of each time to that of the project's own."""
    own = {(row.model, row.grid, row.batch): row.seconds_per_batch for row in rows if row.implementation == "hvq"}
    head = ["model", "grid", "batch", "implementation", "parameters", "s a batch", "codes/s", "× floor", "× hvq"]
    lines = [
        [
            row.model,
            row.grid,
            str(row.batch),
            row.implementation,
            f"{row.parameters:,}",
            f"{row.seconds_per_batch:,.2f}",
            f"{row.codes_per_second:,.1f}",
            "-" if row.times_floor is None else f"{row.times_floor:.2f}",
            f"{row.seconds_per_batch / own[key]:.2f}" if (key := (row.model, row.grid, row.batch)) in own else "-",
        ]
        for row in rows
    ]
    return markdown(head, lines)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="small grids, one turn of each: under two minutes")
    parser.add_argument("--json", type=Path, help="file of rows; what it holds is not measured again")
    parser.add_argument("--peer", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--only", nargs="+", choices=[*CELLS, WHOLE_PATH], default=[*CELLS, WHOLE_PATH])
    return parser.parse_args(words)


def measure_model(
    model: str, batch: int, grid: Grid, arguments: argparse.Namespace, machine: Machine, rows: Sequence[Row]
) -> list[Row]:
    """What is not among the rows yet of one model and batch."""
    cell, task = CELLS[model], Task(model, grid, batch, arguments.device, arguments.peer)
    place = (model, grid_text(grid), batch)
    done = {row.implementation for row in rows if (row.model, row.grid, row.batch) == place}
    names = [name for name in (*OWN, *cell.others) if name not in done]
    return measure(task, names, 1 if arguments.quick else cell.turns, machine)


def main(words: list[str] | None = None) -> int:
    """Measure what is not there yet, and print the table."""
    arguments = parse_arguments(words)
    grids = QUICK_GRIDS if arguments.quick else GRIDS
    machine = Machine(best_rate(arguments.device), best_bandwidth(arguments.device))
    rows = load_rows(arguments.json, Row)
    for model in (name for name in CELLS if name in arguments.only):
        for batch in CELLS[model].batches:
            rows += measure_model(model, batch, grids[model], arguments, machine, rows)
            save_rows(arguments.json, rows)
    if WHOLE_PATH in arguments.only and not whole_path_rows(rows, grids):
        rows += whole_path(grids, arguments.device, machine)
        save_rows(arguments.json, rows)
    print(about(arguments.device, machine.rate, machine.bandwidth))
    print(table(rows))
    if path_rows := whole_path_rows(rows, grids):
        print(whole_path_text(path_rows))
    print(NOTE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
