"""Training steps of priors beside another implementation, on the same machine in one process.

    python benchmarks/prior_training.py --peer FOLDER --json training.json --curve 600

One step is forward, cross entropy, backward, clipping of the gradient and AdamW, by the training code of the project;
`peer` is the loop of rosinality/vq-vae-2-pytorch, from a checkout of it: its model, cross entropy, backward and Adam.
Implementations of a model take turns; images per second are from the median. Peak memory is what a process of its own
needs for a model, its optimizer and two steps. bf16 is autocast, with float32 weights.

`--curve STEPS` also trains PixelSNAIL of either implementation, small and of one size, on the same codes in the same
order with the same optimizer, and prints the losses side by side. The codes are a noisy Markov field, each a copy of
the one above or the one to the left but for noise; what a perfect model would still lose is printed with them.

A call with the same file goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from measuring import about, best_rate, interleaved, load_rows, markdown, peak_beyond, peak_in_a_process, save_rows
from prior_models import (
    GRIDS,
    QUICK_GRIDS,
    Grid,
    build_own,
    build_peer,
    condition_for,
    parameters,
    peer_inputs,
    peer_pixelsnail,
    random_codes,
    reason_without_peer,
)
from torch import Tensor, nn
from torch.nn import functional

from hvq.config import OptimizationConfig
from hvq.priors import Condition, PixelSNAILPrior
from hvq.training.optimization import Losses, Optimization

# Implementations and precisions of each model, the project's own first.
OWN = (("hvq", "float32"), ("hvq", "bf16"))
# Its script trains in float32 on CPUs; the same under autocast is measured beside it.
PEER = (("peer", "float32"), ("peer", "bf16"))
MODELS: dict[str, tuple[tuple[str, str], ...]] = {
    "pixelsnail-top": (*OWN, *PEER),
    "pixelsnail-bottom": (*OWN, *PEER),
    "pixelcnn": OWN,
    "transformer-85m": OWN,
}
PEER_LEARNING_RATE = 3e-4

CURVE_GRID: Grid = (8, 8)
CURVE_CODES = 32
CURVE_FIELDS: dict[str, Any] = {"width": 64, "residual_width": 64, "blocks": 2, "residual_blocks": 2, "kernel": 5}
CURVE_BATCH = 32
CURVE_LINES = 20
CURVE_HELD_OUT = 512
# Of the two neighbours that a code is a copy of, each; the rest is noise.
COPIED = 0.45


@dataclass(frozen=True)
class Speed:
    """One measured step."""

    what: str
    implementation: str
    model: str
    grid: str
    precision: str
    batch: int
    parameters: int
    images_per_second: float
    peak_mib: float | None


@dataclass(frozen=True)
class Curve:
    """Of a training of `steps`: the mean loss since the line before, and that on held-out codes without drop-out."""

    what: str
    implementation: str
    precision: str
    steps: int
    step: int
    parameters: int
    loss: float
    held_out_nats: float


@dataclass(frozen=True)
class Task:
    """One model, and the batches that it is trained on."""

    model: str
    grid: Grid
    batch: int
    device: str
    peer: Path | None = None


@dataclass(frozen=True)
class Contender:
    """An implementation, ready to train: the model, and one step."""

    model: nn.Module
    step: Callable[[], Any]


# --- steps -----------------------------------------------------------------------------------------------------------


def make_accelerator(device: str) -> Accelerator:
    """Of one precision for the whole process: that of a step is opened within it."""
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def make_losses(logits_of: Callable[[Tensor], Tensor], precision: str, device: str) -> Callable[[Tensor], Losses]:
    """Cross entropy of codes `[B, h, w]`, from logits `[B, h, w, K]`."""

    def losses(codes: Tensor) -> Losses:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = logits_of(codes).float()
            nats = functional.cross_entropy(logits.flatten(0, -2), codes.flatten())
        return nats, {"nats": nats.detach()}

    return losses


def own_contender(task: Task, precision: str) -> Contender:
    """A step of the project's own training."""
    prior = build_own(task.model)
    config = OptimizationConfig(batch_size=task.batch)
    optimization = Optimization(prior, config, make_accelerator(task.device), seed=0)
    condition = condition_for(task.model, task.grid, task.batch, task.device)
    losses = make_losses(lambda codes: optimization.wrapped(codes, condition), precision, task.device)
    codes = random_codes(task.grid, task.batch, task.device)
    prior.train()
    return Contender(prior, lambda: optimization.step([codes], losses))


def peer_contender(task: Task, precision: str) -> Contender:
    """A step as the peer's training script takes it, or the same under autocast."""
    assert task.peer is not None
    model = build_peer(task.model, task.grid, task.peer).to(task.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=PEER_LEARNING_RATE)
    codes = random_codes(task.grid, task.batch, task.device)
    inputs = peer_inputs(task.model, task.grid, task.batch, task.device)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(task.device, torch.bfloat16, enabled=precision == "bf16"):
            logits, _ = model(codes, **inputs)
        loss = functional.cross_entropy(logits.float(), codes)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Contender(model, step)


def make_contender(task: Task, implementation: str, precision: str) -> Contender:
    """An implementation by its name."""
    return peer_contender(task, precision) if implementation == "peer" else own_contender(task, precision)


# --- speed -----------------------------------------------------------------------------------------------------------


def peak_mib(task: Task, implementation: str, precision: str) -> float | None:
    """MiB that a process of its own needs for two steps."""
    words = ["--peak", implementation, task.model, precision, *map(str, task.grid)]
    words += ["--batch", str(task.batch), "--device", task.device]
    words += ["--peer", str(task.peer)] if task.peer else []
    return peak_in_a_process(__file__, words, f"{task.model} by {implementation}, {precision}")


def print_peak(task: Task, implementation: str, precision: str) -> None:
    """What a process that `peak_mib` starts does."""

    def two_steps() -> None:
        contender = make_contender(task, implementation, precision)
        contender.step()
        contender.step()

    print(peak_beyond(two_steps, task.device))


def measure(task: Task, wanted: Iterable[tuple[str, str]], turns: int) -> list[Speed]:
    """All implementations and precisions that are wanted and can be had, of one model."""
    contenders: dict[tuple[str, str], Contender] = {}
    for name in wanted:
        if name in PEER and (reason := reason_without_peer(task.peer)):
            print(f"skipped: {task.model} by peer: {reason}", file=sys.stderr)
            continue
        contenders[name] = make_contender(task, *name)
    named = {" ".join(name): contender.step for name, contender in contenders.items()}
    seconds = interleaved(named, turns, task.device)
    counts = {name: parameters(contender.model) for name, contender in contenders.items()}
    # Their memory is free before other processes measure theirs.
    del contenders, named
    return [make_row(task, name, counts[name], seconds[" ".join(name)]) for name in counts]


def make_row(task: Task, name: tuple[str, str], count: int, seconds: float) -> Speed:
    """Seconds of a step as a row, with its peak memory."""
    implementation, precision = name
    peak = peak_mib(task, implementation, precision)
    return Speed(
        what="speed",
        implementation=implementation,
        model=task.model,
        grid="x".join(map(str, task.grid)),
        precision=precision,
        batch=task.batch,
        parameters=count,
        images_per_second=round(task.batch / seconds, 4),
        peak_mib=None if peak is None else round(peak, 1),
    )


# --- curves ----------------------------------------------------------------------------------------------------------


def field_codes(number: int, seed: int) -> Tensor:
    """Codes int64 `[n, h, w]` of a noisy Markov field, whose surroundings are fixed."""
    generator = torch.Generator().manual_seed(seed)
    height, width = CURVE_GRID
    chance = torch.rand(number, height, width, generator=generator)
    codes = torch.randint(CURVE_CODES, (number, height, width), generator=generator)
    for row in range(height):
        for column in range(width):
            above, left = _neighbours(codes, row, column)
            draw, here = chance[:, row, column], codes[:, row, column]
            copied = torch.where(draw < COPIED, above, left)
            codes[:, row, column] = torch.where(draw < 2 * COPIED, copied, here)
    return codes


def _neighbours(codes: Tensor, row: int, column: int) -> tuple[Tensor, Tensor]:
    outside = codes.new_full((len(codes),), 7 * column % CURVE_CODES)
    beside = codes.new_full((len(codes),), (11 * row + 1) % CURVE_CODES)
    return codes[:, row - 1, column] if row else outside, codes[:, row, column - 1] if column else beside


def field_nats(codes: Tensor) -> float:
    """Nats per code of the field itself, which no model can do better than."""
    total, (height, width) = 0.0, CURVE_GRID
    for row in range(height):
        for column in range(width):
            above, left = _neighbours(codes, row, column)
            here = codes[:, row, column]
            chance = COPIED * ((here == above).double() + (here == left)) + (1 - 2 * COPIED) / CURVE_CODES
            total -= float(chance.log().mean())
    return total / (height * width)


def curve_model(implementation: str, peer: Path | None) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """A small PixelSNAIL, and how it gives logits `[B, h, w, K]`."""
    torch.manual_seed(0)
    if implementation == "peer":
        assert peer is not None
        model = peer_pixelsnail(peer, CURVE_GRID, CURVE_FIELDS, codebook_size=CURVE_CODES)
        return model, lambda called, codes: called(codes)[0].movedim(1, -1)
    prior = PixelSNAILPrior(codebook_size=CURVE_CODES, heads=8, **CURVE_FIELDS)
    return prior, lambda called, codes: called(codes, Condition())


def train_curve(implementation: str, precision: str, steps: int, device: str, peer: Path | None) -> list[Curve]:
    """Train on fresh codes at each step, the same for all; a line every few steps."""
    model, logits_of = curve_model(implementation, peer)
    config = OptimizationConfig(
        steps=steps, batch_size=CURVE_BATCH, learning_rate=1e-3, warmup_steps=min(50, math.ceil(steps / 10))
    )
    optimization = Optimization(model, config, make_accelerator(device), seed=0)
    losses = make_losses(lambda codes: logits_of(optimization.wrapped, codes), precision, device)
    held_out, rows, since = field_codes(CURVE_HELD_OUT, seed=0).to(device), [], []
    for step in range(1, steps + 1):
        model.train()
        codes = field_codes(CURVE_BATCH, seed=step).to(device)
        since.append(optimization.step([codes], losses).terms["nats"])
        if step % max(1, steps // CURVE_LINES) == 0 or step == steps:
            nats = held_out_nats(model, logits_of, held_out)
            loss, since = sum(since) / len(since), []
            rows.append(Curve("curve", implementation, precision, steps, step, parameters(model), loss, nats))
    return rows


@torch.no_grad()
def held_out_nats(model: nn.Module, logits_of: Callable[[nn.Module, Tensor], Tensor], codes: Tensor) -> float:
    """Mean over all codes, without drop-out, in float32."""
    model.eval()
    parts = codes.split(CURVE_BATCH)
    sums = [functional.cross_entropy(logits_of(model, part).flatten(0, -2), part.flatten()) for part in parts]
    return float(torch.stack(sums).mean())


def missing_curves(arguments: argparse.Namespace, rows: Sequence[Speed | Curve]) -> list[tuple[str, str]]:
    """Implementations and precisions whose training is not among the rows yet, and can be had."""
    steps = arguments.curve
    done = {(row.implementation, row.precision) for row in rows if isinstance(row, Curve) and row.steps == steps}
    missing = [name for name in (*OWN, PEER[0]) if name not in done]
    if PEER[0] in missing and (reason := reason_without_peer(arguments.peer)):
        print(f"skipped: curve by peer: {reason}", file=sys.stderr)
        missing.remove(PEER[0])
    return missing


# --- output ----------------------------------------------------------------------------------------------------------


def speed_table(rows: Sequence[Speed]) -> str:
    """Markdown, with the ratio of each rate to that of the project's own in float32."""
    own = {(r.model, r.grid, r.batch): r.images_per_second for r in rows if (r.implementation, r.precision) == OWN[0]}
    head = ["model", "grid", "batch", "implementation", "precision", "parameters", "images/s", "× hvq", "peak MiB"]
    lines = [
        [
            row.model,
            row.grid,
            str(row.batch),
            row.implementation,
            row.precision,
            f"{row.parameters:,}",
            f"{row.images_per_second:.3f}",
            f"{row.images_per_second / own[key]:.2f}" if (key := (row.model, row.grid, row.batch)) in own else "-",
            "-" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
        ]
        for row in rows
    ]
    return markdown(head, lines)


def curve_table(rows: Sequence[Curve]) -> str:
    """Markdown: one line for each step, training loss and held-out nats of each side by side."""
    names = list(dict.fromkeys((row.implementation, row.precision, row.parameters) for row in rows))
    head = ["step", *(f"{name}, {precision}, {count:,} parameters" for name, precision, count in names)]
    found = {(row.implementation, row.precision, row.parameters, row.step): row for row in rows}
    lines = [
        [
            str(step),
            *(
                f"{row.loss:.4f} ({row.held_out_nats:.4f})" if (row := found.get((*name, step))) else "-"
                for name in names
            ),
        ]
        for step in sorted({row.step for row in rows})
    ]
    return markdown(head, lines)


def print_rows(rows: Sequence[Speed | Curve]) -> None:
    """All tables that there are rows for."""
    if speeds := [row for row in rows if isinstance(row, Speed)]:
        print(speed_table(speeds))
    curves = [row for row in rows if isinstance(row, Curve)]
    for steps in sorted({row.steps for row in curves}):
        least = field_nats(field_codes(CURVE_HELD_OUT, seed=0))
        print(f"\nloss while training, {steps} steps (held out; the field itself has {least:.4f} nats per code)\n")
        print(curve_table([row for row in curves if row.steps == steps]))


def read_row(**fields: Any) -> Speed | Curve:
    """A row of either sort."""
    return (Curve if fields["what"] == "curve" else Speed)(**fields)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="small grids, one turn: under three minutes")
    parser.add_argument("--json", type=Path, help="file of rows; what it holds is not measured again")
    parser.add_argument("--peer", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--batch", type=int, default=4, help="images of each step")
    parser.add_argument("--only", nargs="*", choices=list(MODELS), default=list(MODELS), help="none for curves alone")
    parser.add_argument("--curve", type=int, metavar="STEPS", help="also train small models and print their losses")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def measure_model(model: str, arguments: argparse.Namespace, rows: Sequence[Speed | Curve]) -> list[Speed]:
    """What is not among the rows yet of one model."""
    grid = (QUICK_GRIDS if arguments.quick else GRIDS)[model]
    task = Task(model, grid, arguments.batch, arguments.device, arguments.peer)
    place = (model, "x".join(map(str, grid)), arguments.batch)
    speeds = [row for row in rows if isinstance(row, Speed) and (row.model, row.grid, row.batch) == place]
    done = {(row.implementation, row.precision) for row in speeds}
    return measure(task, [name for name in MODELS[model] if name not in done], 1 if arguments.quick else 5)


def main(words: list[str] | None = None) -> int:
    """Measure what is not there yet, and print the tables."""
    arguments = parse_arguments(words)
    if arguments.peak:
        implementation, model, precision, *grid = arguments.peak
        height, width = map(int, grid)
        task = Task(model, (height, width), arguments.batch, arguments.device, arguments.peer)
        print_peak(task, implementation, precision)
        return 0
    rows: list[Speed | Curve] = load_rows(arguments.json, read_row)
    for model in (name for name in MODELS if name in arguments.only):
        rows += measure_model(model, arguments, rows)
        save_rows(arguments.json, rows)
    for name in missing_curves(arguments, rows) if arguments.curve else []:
        rows += train_curve(*name, arguments.curve, arguments.device, arguments.peer)
        save_rows(arguments.json, rows)
    print(about(arguments.device, best_rate(arguments.device)))
    print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
