"""What the presets take: parameters, work of the whole training, and how fast this machine goes at it.

    python benchmarks/presets.py --json presets.json

For each model of each preset, the autoencoder and the prior of each level:

    GFLOP per sample    of a training step, by torch's own counter, on tensors without memory
    PFLOP               that times batch size and steps: all of the training
    samples/s           of training steps on this machine in float32, at `measured batch`; looks at held-out data,
                        reading images and saving are not in them
    hours here          batch size x steps over samples/s: reckoned, not waited for
    peak MiB            of a process of its own for the model, its optimizer and such steps, at `measured batch`
    hours of an H100    PFLOP at 400 TFLOP/s, 40 % of its bf16 rate: reckoned, no GPU was there

Models above `--most-parameters` million are not trained here: their weights, gradients and averages, 24 bytes for each
parameter, are for larger machines. Cells are saved one by one, and a call with the same file goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from measuring import load_rows, markdown, peak_beyond, peak_in_a_process, save_rows
from network import CONFIGS, Model, autoencoder_of, prior_of
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders import AutoencoderLoss, build_autoencoder, weights_channels_last
from hvq.config import RunConfig
from hvq.config_loading import load_run_config
from hvq.priors import Condition, build_prior
from hvq.training.memory import keep_freed_memory
from hvq.training.optimization import Losses, Optimization

AUTOENCODER = "autoencoder"
H100_OPERATIONS_PER_SECOND = 400e12
# A step of this many operations takes some seconds on two cores.
_OPERATIONS_OF_A_STEP = 1e12
_STEPS = 4


@dataclass(frozen=True)
class Row:
    """One model of a preset; `samples_per_second` and `peak_mib` are None where it was not trained here."""

    preset: str
    part: str
    parameters: int
    operations_per_sample: int
    batch: int
    steps: int
    measured_batch: int | None
    samples_per_second: float | None
    peak_mib: float | None

    @property
    def operations(self) -> float:
        """Of the whole training."""
        return float(self.operations_per_sample) * self.batch * self.steps


# --- parts -----------------------------------------------------------------------------------------------------------


def config_of(preset: str) -> RunConfig:
    """As its file says."""
    return load_run_config(CONFIGS / f"{preset}.yaml", [])


def parts_of(preset: str) -> list[str]:
    """The autoencoder, and each level that can have a prior."""
    config = config_of(preset)
    with torch.device("meta"):
        quantizers = build_autoencoder(config.autoencoder).quantizers
    return [AUTOENCODER, *(name for name, quantizer in quantizers.items() if quantizer.discrete)]


def model_of(preset: str, part: str) -> Model:
    """Its parameters and operations."""
    config = config_of(preset)
    return autoencoder_of(preset, config) if part == AUTOENCODER else prior_of(preset, config, part)


def lengths(config: RunConfig, part: str) -> tuple[int, int]:
    """Batch size and steps."""
    training = config.autoencoder_training if part == AUTOENCODER else config.prior(part).training
    return training.batch_size, training.steps


# --- steps -----------------------------------------------------------------------------------------------------------


def make_step(config: RunConfig, part: str, batch: int) -> Callable[[], Any]:
    """A step of the project's own training, on data that are made up."""
    keep_freed_memory()
    return _autoencoder_step(config, batch) if part == AUTOENCODER else _prior_step(config, part, batch)


def _accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


def _autoencoder_step(config: RunConfig, batch: int) -> Callable[[], Any]:
    model = weights_channels_last(build_autoencoder(config.autoencoder)).train()
    optimization = Optimization(model, config.autoencoder_training, _accelerator(), seed=0, quantizers=model.quantizers)
    images = torch.rand(batch, config.data.channels, *config.data.size) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    loss = AutoencoderLoss()

    def losses(images: Tensor) -> Losses:
        result = optimization.wrapped(images, None)
        optimization.codebooks.add(result.levels)
        return loss(result, images)

    return lambda: optimization.step([images], losses)


def _prior_step(config: RunConfig, level: str, batch: int) -> Callable[[], Any]:
    with torch.device("meta"):
        model = build_autoencoder(config.autoencoder)
    grids = model.grids(config.data.size)
    sizes = {name: quantizer.codebook_size for name, quantizer in model.quantizers.items()}
    coarser = {name: sizes[name] for name in model.level_names[: model.level_names.index(level)]}
    stage = config.prior(level)
    prior = build_prior(stage.model, codebook_size=sizes[level], coarser=coarser).train()
    optimization = Optimization(prior, stage.training, _accelerator(), seed=0)
    codes = {name: torch.randint(sizes[name], (batch, *grids[name])) for name in (*coarser, level)}
    condition = Condition(codes={name: codes[name] for name in coarser})

    def losses(codes: Tensor) -> Losses:
        logits = optimization.wrapped(codes, condition).float()
        return functional.cross_entropy(logits.flatten(0, -2), codes.flatten()), {}

    return lambda: optimization.step([codes[level]], losses)


def seconds_of(step: Callable[[], Any]) -> float:
    """The median of some steps, after one that is not counted."""
    step()
    seconds = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


# --- rows ------------------------------------------------------------------------------------------------------------


def row_of(preset: str, part: str, arguments: argparse.Namespace) -> Row:
    """One model, trained for some steps where it is small enough."""
    model, config = model_of(preset, part), config_of(preset)
    batch, steps = lengths(config, part)
    fits = model.parameters <= 1e6 * arguments.most_parameters
    measured = 1 if arguments.quick else max(1, min(batch, int(_OPERATIONS_OF_A_STEP / model.operations)))
    peak = rate = None
    if fits:
        words = ["--peak-of", preset, part, str(measured)]
        peak = peak_in_a_process(__file__, words, f"{preset}, {part}")
        rate = measured / seconds_of(make_step(config, part, measured))
    return Row(
        preset=preset,
        part=part,
        parameters=model.parameters,
        operations_per_sample=model.operations,
        batch=batch,
        steps=steps,
        measured_batch=measured if fits else None,
        samples_per_second=rate,
        peak_mib=peak,
    )


def missing(arguments: argparse.Namespace, rows: list[Row]) -> Iterator[tuple[str, str]]:
    """Models that have no row yet."""
    done = {(row.preset, row.part) for row in rows}
    presets = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    for preset in arguments.only or (["digits"] if arguments.quick else presets):
        yield from ((preset, part) for part in parts_of(preset) if (preset, part) not in done)


def table(rows: list[Row]) -> str:
    """All rows, as README.md shows them."""
    head = ["preset", "model", "parameters", "GFLOP per sample", "batch, steps", "PFLOP", "measured batch"]
    return markdown(
        [*head, "samples/s", "hours here", "peak MiB", "hours of an H100"],
        (
            [
                row.preset,
                row.part,
                f"{row.parameters:,}",
                f"{row.operations_per_sample / 1e9:,.2f}",
                f"{row.batch:,}, {row.steps:,}",
                _short(row.operations / 1e15),
                "-" if row.measured_batch is None else f"{row.measured_batch:,}",
                _short(row.samples_per_second),
                _short(row.samples_per_second and row.batch * row.steps / row.samples_per_second / 3600),
                _short(row.peak_mib),
                _short(row.operations / H100_OPERATIONS_PER_SECOND / 3600),
            ]
            for row in rows
        ),
    )


def _short(value: float | None) -> str:
    """Two digits at least.

    >>> _short(1234.5), _short(3.14159), _short(0.0123), _short(None)
    ('1,234', '3.1', '0.012', '-')
    """
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def print_peak(preset: str, part: str, batch: str) -> None:
    """MiB of such a process, for `peak_in_a_process`."""

    def two_steps() -> None:
        step = make_step(config_of(preset), part, int(batch))
        step()
        step()

    print(peak_beyond(two_steps, "cpu"))


def main(words: list[str] | None = None) -> int:
    """Measure what is not in the file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one preset, one sample a step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of rows; what it holds is not measured again")
    parser.add_argument("--only", nargs="+", metavar="PRESET", help="presets; all by default")
    parser.add_argument("--most-parameters", type=float, default=200.0, metavar="M", help="million, of what is trained")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.peak_of:
        print_peak(*arguments.peak_of)
        return 0
    rows = load_rows(arguments.json, Row)
    for preset, part in list(missing(arguments, rows)):
        rows.append(row_of(preset, part, arguments))
        save_rows(arguments.json, rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
