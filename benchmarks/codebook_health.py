"""Usage, perplexity and reconstruction error of every kind of quantizer, by codebook size and code width.

Each cell trains one level on CIFAR-10 with the kind's defaults for some hundred steps and measures the whole held-out
split. Cells are saved one by one, and a call with the same file goes on where the last one stopped.

    python benchmarks/codebook_health.py --data FOLDER --json health.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    build_autoencoder,
    initialize_codebooks,
    weights_channels_last,
)
from hvq.config import AutoencoderConfig
from hvq.config_data import ArrayConfig
from hvq.data import ImageSource, build_sources, ordered_batches
from hvq.data.pixels import bytes_to_model
from hvq.errors import HVQError
from hvq.evaluation import CodeUsage
from hvq.files import write_json
from hvq.quantizers import CodebookStep
from hvq.randomness import hash_words, permutation

SIZES = (512, 4096, 16384)
WIDTHS = (8, 32, 256)
# Two codes of a kind that gives several have the bits of one of K: their codebooks have √K codes each.
KINDS: dict[str, dict[str, Any]] = {
    "vector": {"kind": "vector"},
    "vector, rotation": {"kind": "vector", "estimator": "rotation"},
    "vector, cosine": {"kind": "vector", "metric": "cosine"},
    "vector, gradient": {"kind": "vector", "learning": "gradient"},
    "vector, DiVeQ": {"kind": "vector", "learning": "gradient", "estimator": "diveq"},
    "residual, 2 codes": {"kind": "residual", "num_quantizers": 2},
    "finite_scalar": {"kind": "finite_scalar"},
    "lookup_free": {"kind": "lookup_free"},
    "lookup_free, spherical": {"kind": "lookup_free", "spherical": True},
    "sim": {"kind": "sim"},
    "gumbel": {"kind": "gumbel"},
}
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
WARMUP_STEPS = 30


@dataclass(frozen=True)
class Cell:
    """One trained level and what was measured of it on held-out images; the error is on [0, 1]."""

    kind: str
    k: int
    d: int
    steps: int
    usage: float
    perplexity: float
    mse: float
    seconds: float


def level_of(kind: str, codebook_size: int, width: int) -> AutoencoderConfig:
    """One level of 8x8 codes under a small convolutional encoder and decoder."""
    several = KINDS[kind].get("num_quantizers", 1)
    features = {"width": 64, "residual_blocks": 1, "residual_width": 32}
    level = {
        "ratio": 4,
        "codebook_size": round(codebook_size ** (1 / several)) if several > 1 else codebook_size,
        "code_dimension": width,
        "quantizer": KINDS[kind],
        **features,
    }
    return AutoencoderConfig.model_validate({"channels": 3, "levels": {"top": level}, "decoder": features})


def all_images(source: ImageSource) -> Tensor:
    """uint8 `[n, 3, 32, 32]`, decoded once for all cells."""
    return torch.cat([batch.images for batch in ordered_batches(source, chunk_size=500, rank=0, processes=1)])


def batches(images: Tensor) -> Iterator[Tensor]:
    """Endless batches in [-1, 1], shuffled anew in each epoch."""
    for epoch in itertools.count():
        order = torch.from_numpy(permutation(len(images), "codebook health", epoch))
        for rows in order.split(BATCH_SIZE)[: max(1, len(images) // BATCH_SIZE)]:
            yield bytes_to_model(images[rows])


def train(model: Autoencoder, images: Tensor, steps: int) -> None:
    """The papers' loss and AdamW, with the codebook step beside it."""
    stream = batches(images)
    initialize_codebooks(model, stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    codebooks, loss = CodebookStep(model.quantizers, optimizer), AutoencoderLoss()
    model.train()
    for step, batch in zip(range(steps), stream, strict=False):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
        torch.manual_seed(int(hash_words("codebook health", step) >> 1))
        result = model(batch)
        total, _ = loss(result, batch)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        codebooks.add(result.levels)
        optimizer.step()
        codebooks.step()


@torch.no_grad()
def measure(model: Autoencoder, images: Tensor) -> tuple[float, float, float]:
    """Usage, perplexity and mean squared error on [0, 1] over all images."""
    model.eval()
    quantizer = model.quantizers["top"]
    usage = CodeUsage(codebook_size=quantizer.codebook_size, codes_per_position=quantizer.codes_per_position)
    squared = 0.0
    for part in images.split(500):
        pixels = bytes_to_model(part)
        result = model(pixels)
        usage.update(result.codes["top"])
        squared += float(functional.mse_loss(result.reconstruction, pixels, reduction="sum")) / 4
    histogram = usage.compute()
    return histogram.usage, histogram.perplexity, squared / images.numel()


def run_cell(kind: str, codebook_size: int, width: int, train_images: Tensor, held_out: Tensor, steps: int) -> Cell:
    """Train and measure one cell."""
    started = time.perf_counter()
    torch.manual_seed(0)
    model = weights_channels_last(build_autoencoder(level_of(kind, codebook_size, width)))
    train(model, train_images, steps)
    usage, perplexity, mse = measure(model, held_out)
    return Cell(kind, codebook_size, width, steps, usage, perplexity, mse, time.perf_counter() - started)


def table(cells: list[Cell]) -> str:
    """One Markdown table per codebook size: usage, perplexity and error by kind and width."""
    lines: list[str] = []
    for size in sorted({cell.k for cell in cells}):
        here = [cell for cell in cells if cell.k == size]
        widths = sorted({cell.d for cell in here})
        lines += ["", f"K = {size}: usage, perplexity, mean squared error", ""]
        lines += [f"| kind | {' | '.join(f'D = {width}' for width in widths)} |", "| --- " * (len(widths) + 1) + "|"]
        for kind in dict.fromkeys(cell.kind for cell in here):
            found = {cell.d: cell for cell in here if cell.kind == kind}
            texts = [
                f"{100 * cell.usage:.1f} %, {cell.perplexity:.0f}, {cell.mse:.5f}"
                if (cell := found.get(width))
                else "-"
                for width in widths
            ]
            lines.append(f"| {kind} | {' | '.join(texts)} |")
    return "\n".join(lines)


def load_cells(file: Path | None) -> list[Cell]:
    """The cells that an earlier call has saved."""
    return [Cell(**row) for row in json.loads(file.read_text())] if file and file.exists() else []


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10-{train,val}.safetensors")
    parser.add_argument("--json", type=Path, help="file of cells; what it holds is not run again")
    parser.add_argument("--quick", action="store_true", help="30 steps, K = 512 and D = 8 alone, 500 images measured")
    parser.add_argument("--only", type=lambda text: text.split(";"), help="kinds, separated by semicolons")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="codebook sizes")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="code widths")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each cell")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the cells that are not there yet, and print the tables."""
    arguments = parse_arguments(words)
    if arguments.quick:
        arguments.sizes, arguments.widths, arguments.steps = [512], [8], min(30, arguments.steps)
    unknown = [kind for kind in arguments.only or [] if kind not in KINDS]
    if unknown:
        print(f"no kind {', '.join(unknown)}; there are {'; '.join(KINDS)}", file=sys.stderr)
        return 2
    names = {split: str(arguments.data / f"cifar10-{split}.safetensors") for split in ("train", "val")}
    try:
        sources = build_sources(ArrayConfig(train=names["train"], validation=names["val"]), 0)
    except HVQError as error:
        print(error, file=sys.stderr)
        return 1
    train_images, held_out = all_images(sources.train), all_images(sources.validation)
    held_out = held_out[:500] if arguments.quick else held_out
    cells = load_cells(arguments.json)
    done = {(cell.kind, cell.k, cell.d, cell.steps) for cell in cells}
    for size, width, kind in itertools.product(arguments.sizes, arguments.widths, arguments.only or KINDS):
        if (kind, size, width, arguments.steps) in done:
            continue
        cell = run_cell(kind, size, width, train_images, held_out, arguments.steps)
        cells.append(cell)
        print(
            f"{kind}, K {size}, D {width}: usage {cell.usage:.3f}, perplexity {cell.perplexity:.0f}, "
            f"mse {cell.mse:.5f}, {cell.seconds:.0f} s",
            flush=True,
        )
        if arguments.json:
            write_json(arguments.json, [asdict(cell) for cell in cells])
    print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
