"""Training steps of the autoencoder beside another implementation, on the same machine in the same run.

    python benchmarks/train_step.py --peer FOLDER --json steps.json --curve 300 --data PHOTOGRAPHS

One step of `hvq` is bytes to floats, forward, loss, backward, clipping of the gradient, AdamW and the codebook step, by
the training code of the project; `peer` is the loop of rosinality/vq-vae-2-pytorch, from a checkout of it: its model
with its codebooks, mean squared error and a quarter of its latent loss, backward and Adam. Both are the VQ-VAE-2 of two
levels that the peer has by default, of the same layers and as many parameters. bf16 is autocast, with float32 weights;
`compiled` is the forward, and so the backward, by `torch.compile` without graph breaks.

Each implementation has a process of its own, with its own memory, and they take turns; images per second are from the
median. Peak memory is what such a process needs for a model, its optimizer and two steps.

`--curve STEPS` also trains all of them, but for the peer in bf16, on the same images in the same order, and prints the
squared errors of reconstruction on held-out images side by side. Nothing is measured twice: run it again with the same
`--json` to go on.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from measuring import about, best_rate, end, load_rows, markdown, peak_beyond, save_rows, timed
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    convolutional_autoencoder,
    initialize_codebooks,
    weights_channels_last,
)
from hvq.config import OptimizationConfig
from hvq.config_data import FolderConfig, PhotosConfig
from hvq.data import Sources, TrainingStream, build_sources, ordered_batches
from hvq.data.pixels import bytes_to_model
from hvq.training.memory import keep_freed_memory
from hvq.training.optimization import Losses, Optimization

# Implementation, precision and mode; the project's own first.
Name = tuple[str, str, str]
OWN: tuple[Name, ...] = tuple(
    ("hvq", precision, mode) for precision in ("float32", "bf16") for mode in ("eager", "compiled")
)
# Its script trains in float32; the same under autocast is measured beside it.
PEER: tuple[Name, ...] = (("peer", "float32", "eager"), ("peer", "bf16", "eager"))
CURVES: tuple[Name, ...] = (*OWN, PEER[0])
SIZE, QUICK_SIZE = 256, 64
TURNS, QUICK_TURNS = 7, 1

# The peer's defaults: `in_channel`, `channel`, ... of its VQVAE, and `--lr` of its script.
LEVEL = {"width": 128, "residual_blocks": 2, "residual_width": 32, "codebook_size": 512, "code_dimension": 64}
DECODER = {"width": 128, "residual_blocks": 2, "residual_width": 32, "sees": "vectors"}
PEER_FIELDS = {"channel": 128, "n_res_block": 2, "n_res_channel": 32, "embed_dim": 64, "n_embed": 512}
LEARNING_RATE = 3e-4
LATENT_LOSS_WEIGHT = 0.25

CURVE_BATCH = 16
CURVE_LINES = 10
CURVE_HELD_OUT = 128


@dataclass(frozen=True)
class Speed:
    """One measured step."""

    what: str
    implementation: str
    precision: str
    mode: str
    size: int
    batch: int
    parameters: int
    images_per_second: float
    peak_mebibytes: float


@dataclass(frozen=True)
class Curve:
    """Of a training of `steps`: squared errors in [-1, 1], the mean since the line before and on held-out images."""

    what: str
    implementation: str
    precision: str
    mode: str
    size: int
    steps: int
    step: int
    parameters: int
    squared_error: float
    held_out_squared_error: float


@dataclass(frozen=True)
class Contender:
    """An implementation, ready to train.

    Attributes:
        model: in training mode.
        step: one step on images uint8 `[B, 3, H, W]`; gives their squared error of reconstruction in [-1, 1].
        restore: images as the model wants them to their reconstructions.
    """

    model: nn.Module
    step: Callable[[Tensor], float]
    restore: Callable[[Tensor], Tensor]


# --- steps -----------------------------------------------------------------------------------------------------------


def make_contender(name: Name, config: OptimizationConfig, device: str, peer: Path | None) -> Contender:
    """An implementation by its name, with fresh weights."""
    torch.manual_seed(0)
    implementation, precision, mode = name
    if implementation == "hvq":
        return own_contender(precision, mode, config, device)
    assert peer is not None
    return peer_contender(precision, device, peer)


def build_own() -> Autoencoder:
    """The autoencoder that has the peer's layers."""
    return convolutional_autoencoder(
        channels=3, levels={"top": {"ratio": 2, **LEVEL}, "bottom": {"ratio": 4, **LEVEL}}, decoder=DECODER
    )


def own_contender(precision: str, mode: str, config: OptimizationConfig, device: str) -> Contender:
    """A step of the project's own training."""
    keep_freed_memory()
    model = weights_channels_last(build_own()).train()
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    optimization = Optimization(model, config, accelerator, seed=0, quantizers=model.quantizers)
    called = torch.compile(optimization.wrapped, fullgraph=True) if mode == "compiled" else optimization.wrapped
    loss = AutoencoderLoss()

    def losses(images: Tensor) -> Losses:
        pixels = bytes_to_model(images.to(device))
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            result = called(pixels)
            optimization.codebooks.add(result.levels)
            return loss(result, pixels)

    return Contender(
        model,
        lambda images: optimization.step([images], losses).terms["reconstruction"],
        lambda pixels: model(pixels).reconstruction,
    )


def peer_contender(precision: str, device: str, peer: Path) -> Contender:
    """A step as the peer's training script takes it, or the same under autocast."""
    model = peer_module(peer).VQVAE(in_channel=3, **PEER_FIELDS).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def step(images: Tensor) -> float:
        pixels = peer_pixels(images, device)
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            restored, latent_loss = model(pixels)
            squared_error = functional.mse_loss(restored, pixels)
            loss = squared_error + LATENT_LOSS_WEIGHT * latent_loss.mean()
        loss.backward()
        optimizer.step()
        return squared_error.item()

    return Contender(model, step, lambda pixels: model(pixels)[0])


@functools.lru_cache(maxsize=1)
def peer_pixels(images: Tensor, device: str) -> Tensor:
    """What the peer's loader gives: its steps begin with floats, which the measured ones make once."""
    return bytes_to_model(images.to(device))


@functools.cache
def peer_module(directory: Path) -> Any:
    """The peer's `vqvae.py`, which imports a neighbour by its bare name."""
    spec = importlib.util.spec_from_file_location("peer_vqvae", directory / "vqvae.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(directory))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(directory))
    return module


def reason_without_peer(directory: Path | None) -> str | None:
    """Why there is no peer; None where there is one."""
    if directory is None:
        return "--peer names no checkout of rosinality/vq-vae-2-pytorch"
    return None if (directory / "vqvae.py").exists() else f"there is no vqvae.py in {directory}"


def parameters(model: nn.Module) -> int:
    """All of them; codebooks that learn by moving averages are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def operations_per_image(size: int) -> int:
    """Of the convolutions, forward and backward; a product with its sum counts two."""
    model, counter = build_own(), FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, 3, size, size)).reconstruction.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if "convolution" in str(operation))


# --- speed -----------------------------------------------------------------------------------------------------------


class Worker:
    """A process in which one implementation waits for its turns.

    Args:
        name: of the implementation.
        arguments: of the command line.

    Raises:
        RuntimeError: where the process ended before its first turn; it says why on standard error.
    """

    def __init__(self, name: Name, arguments: argparse.Namespace) -> None:
        words = [*name, str(size_of(arguments)), "--batch", str(arguments.batch), "--device", arguments.device]
        words += ["--peer", str(arguments.peer)] if arguments.peer else []
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []
        self.parameters, self.peak = self._answer()

    def take_turn(self) -> None:
        """One timed step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.seconds.append(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with exit status {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """The process ends with its input."""
        end(self._process)


def work(name: Name, size: int, arguments: argparse.Namespace) -> None:
    """What a process of a `Worker` does: parameters and peak memory, then a step for each line, and its seconds."""
    images = torch.randint(256, (arguments.batch, 3, size, size), dtype=torch.uint8)
    contenders: list[Contender] = []

    def two_steps() -> None:
        contenders.append(make_contender(name, OptimizationConfig(), arguments.device, arguments.peer))
        contenders[0].step(images)
        contenders[0].step(images)

    peak = peak_beyond(two_steps, arguments.device)
    print(json.dumps([parameters(contenders[0].model), peak]), flush=True)
    for _ in sys.stdin:
        print(timed(lambda: contenders[0].step(images), arguments.device), flush=True)


def measure(names: Iterable[Name], arguments: argparse.Namespace) -> list[Speed]:
    """All that are wanted, turn by turn."""
    with ExitStack() as stack:
        workers: dict[Name, Worker] = {}
        for name in names:
            try:
                workers[name] = stack.enter_context(Worker(name, arguments))
            except RuntimeError as error:
                print(f"skipped: {' '.join(name)}: {error}", file=sys.stderr)
        for _ in range(QUICK_TURNS if arguments.quick else TURNS):
            for worker in workers.values():
                worker.take_turn()
    return [make_row(name, worker, arguments) for name, worker in workers.items()]


def make_row(name: Name, worker: Worker, arguments: argparse.Namespace) -> Speed:
    """The turns of a worker as a row."""
    return Speed(
        "speed",
        *name,
        size=size_of(arguments),
        batch=arguments.batch,
        parameters=worker.parameters,
        images_per_second=round(arguments.batch / median(worker.seconds), 3),
        peak_mebibytes=round(worker.peak, 1),
    )


# --- curves ----------------------------------------------------------------------------------------------------------


def curve_sources(arguments: argparse.Namespace) -> Sources:
    """The photographs of a folder, resized and cropped at random, or crops of those that scikit-image ships."""
    size = (arguments.curve_size, arguments.curve_size)
    if arguments.data is None:
        return build_sources(PhotosConfig(size=size), seed=0)
    return build_sources(FolderConfig(path=str(arguments.data), size=size, crop="random", validation_share=0.2), seed=0)


def train_curve(name: Name, arguments: argparse.Namespace) -> list[Curve]:
    """Train on the same images in the same order as all others; a line every few steps."""
    sources, steps = curve_sources(arguments), arguments.curve
    config = OptimizationConfig(
        steps=steps, batch_size=CURVE_BATCH, learning_rate=LEARNING_RATE, warmup_steps=min(50, steps // 10)
    )
    contender = make_contender(name, config, arguments.device, arguments.peer)
    if isinstance(contender.model, Autoencoder):
        initialize_codebooks(contender.model, (bytes_to_model(images) for images in stream(sources)))
    rows: list[Curve] = []
    since: list[float] = []
    for step, images in zip(range(1, steps + 1), stream(sources), strict=False):
        since.append(contender.step(images))
        if step % max(1, steps // CURVE_LINES) == 0 or step == steps:
            errors = sum(since) / len(since), held_out_error(contender, sources, arguments.device)
            rows.append(Curve("curve", *name, arguments.curve_size, steps, step, parameters(contender.model), *errors))
            since = []
    return rows


def stream(sources: Sources) -> Iterable[Tensor]:
    """Batches uint8 `[B, 3, H, W]` without end, the same every time."""
    steps = TrainingStream(
        sources.train, batch_size=CURVE_BATCH, micro_batches=1, rank=0, processes=1, seed=0, workers=0, start_step=0
    )
    return (batch.images for step in steps for batch in step)


@torch.no_grad()
def held_out_error(contender: Contender, sources: Sources, device: str) -> float:
    """Mean squared error in [-1, 1] over the first held-out images, in float32."""
    contender.model.eval()
    total, count = 0.0, 0
    for batch in ordered_batches(sources.validation, chunk_size=CURVE_BATCH):
        pixels = bytes_to_model(batch.images.to(device))
        total += float((contender.restore(pixels) - pixels).square().double().sum())
        count += pixels.numel()
        if int(batch.indices[-1]) >= CURVE_HELD_OUT - 1:
            break
    contender.model.train()
    return total / count


# --- output ----------------------------------------------------------------------------------------------------------


def speed_table(rows: Sequence[Speed], rate: float) -> str:
    """Markdown, with the ratio of each rate to that of the peer in float32, and operations over the best rate."""
    peers = {(row.size, row.batch): row.images_per_second for row in rows if name_of(row) == PEER[0]}
    operations = {size: operations_per_image(size) for size in {row.size for row in rows}}
    head = ["implementation", "precision", "mode", "size", "batch", "parameters", "images/s"]
    lines = [
        [
            *name_of(row),
            str(row.size),
            str(row.batch),
            f"{row.parameters:,}",
            f"{row.images_per_second:.2f}",
            f"{row.images_per_second / peers[key]:.2f}" if (key := (row.size, row.batch)) in peers else "-",
            f"{row.images_per_second * operations[row.size] / rate:.0%}",
            f"{row.peak_mebibytes:,.0f}",
        ]
        for row in rows
    ]
    return markdown([*head, "× peer", "of best rate", "peak MiB"], lines)


def curve_table(rows: Sequence[Curve]) -> str:
    """Markdown: a line for each step, the error while training and on held-out images of each side by side."""
    names = list(dict.fromkeys(name_of(row) for row in rows))
    found = {(name_of(row), row.step): row for row in rows}
    lines = [
        [
            str(step),
            *(
                f"{row.squared_error:.4f} ({row.held_out_squared_error:.4f})"
                if (row := found.get((name, step)))
                else "-"
                for name in names
            ),
        ]
        for step in sorted({row.step for row in rows})
    ]
    return markdown(["step", *(", ".join(name) for name in names)], lines)


def print_rows(rows: Sequence[Speed | Curve], rate: float) -> None:
    """All tables that there are rows for."""
    if speeds := [row for row in rows if isinstance(row, Speed)]:
        print(speed_table(speeds, rate))
    curves = [row for row in rows if isinstance(row, Curve)]
    for size, steps in sorted({(row.size, row.steps) for row in curves}):
        print(f"\nsquared error while training at {size}x{size}, {steps} steps (held out)\n")
        print(curve_table([row for row in curves if (row.size, row.steps) == (size, steps)]))


def read_row(**values: Any) -> Speed | Curve:
    """A row of either sort."""
    return (Curve if values["what"] == "curve" else Speed)(**values)


def name_of(row: Speed | Curve) -> Name:
    """Implementation, precision and mode."""
    return row.implementation, row.precision, row.mode


def missing(
    names: Sequence[Name], rows: Iterable[Speed | Curve], like: dict[str, Any], peer: Path | None
) -> list[Name]:
    """Those that have no row yet in which the fields `like` are as they are there, and can be had."""
    done = {name_of(row) for row in rows if like.items() <= asdict(row).items()}
    left = [name for name in names if name not in done]
    if any(name in PEER for name in left) and (reason := reason_without_peer(peer)):
        print(f"skipped: peer: {reason}", file=sys.stderr)
        left = [name for name in left if name not in PEER]
    return left


def size_of(arguments: argparse.Namespace) -> int:
    """Height and width of the images that are stepped on."""
    return QUICK_SIZE if arguments.quick else SIZE


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="images of 64x64, one turn: under three minutes")
    parser.add_argument("--json", type=Path, help="file of rows; what it holds is not measured again")
    parser.add_argument("--peer", type=Path, help="a checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--batch", type=int, default=8, help="images of each step")
    parser.add_argument("--curve", type=int, metavar="STEPS", help="also train, and print the errors side by side")
    parser.add_argument("--curve-size", type=int, default=64, help="height and width of the images trained on")
    parser.add_argument("--curve-only", action="store_true", help="no speeds")
    parser.add_argument("--data", type=Path, help="a folder of photographs to train on; scikit-image's by default")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure what is not there yet, and print the tables."""
    arguments = parse_arguments(words)
    if arguments.worker:
        *name, size = arguments.worker
        work(tuple(name), int(size), arguments)
        return 0
    rows: list[Speed | Curve] = load_rows(arguments.json, read_row)
    if not arguments.curve_only:
        like = {"what": "speed", "size": size_of(arguments), "batch": arguments.batch}
        rows += measure(missing((*OWN, *PEER), rows, like, arguments.peer), arguments)
        save_rows(arguments.json, rows)
    like = {"what": "curve", "size": arguments.curve_size, "steps": arguments.curve}
    for name in missing(CURVES, rows, like, arguments.peer) if arguments.curve else []:
        rows += train_curve(name, arguments)
        save_rows(arguments.json, rows)
    rate = best_rate(arguments.device)
    print(about(arguments.device, rate))
    print_rows(rows, rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
