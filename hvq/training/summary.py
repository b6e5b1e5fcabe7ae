"""What a person is told of a training before it begins and when it is done, in a few aligned lines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hvq.autoencoders import Autoencoder
from hvq.autoencoders.level import Level
from hvq.config import OptimizationConfig
from hvq.data import CodeFolder
from hvq.data.views import noun
from hvq.quantizers.codebook import Codebook
from hvq.storage import RunFolder
from hvq.training.durations import duration

_INDENT = "  "
_ABSENT = "-"
_PICTURE_AXES = 2


@dataclass(frozen=True)
class LevelSize:
    """How large a level is.

    Attributes:
        encoder: parameters of the encoder and the projection to latents.
        decoder: parameters of what brings its vectors to the next finer level or the image decoder.
        quantizer: numbers that its quantizer learns, codebooks taught by moving averages among them.
        grid: of the codes of one image.
        codebook_size: K; None where there are no codes.
        codes: number of codes of one image, several per position counted each; None where there are none.
    """

    encoder: int
    decoder: int
    quantizer: int
    grid: tuple[int, ...]
    codebook_size: int | None
    codes: int | None

    @property
    def bits(self) -> float | None:
        """Of the codes of one image, log2 K each; None where there are no codes."""
        return None if self.codes is None or self.codebook_size is None else self.codes * math.log2(self.codebook_size)


def level_sizes(model: Autoencoder, image_size: Sequence[int]) -> dict[str, LevelSize]:
    """How large each level is, coarse to fine, for images of `image_size` (H, W)."""
    return {name: _level_size(model, name, grid) for name, grid in model.grids(image_size).items()}


def _level_size(model: Autoencoder, name: str, grid: tuple[int, ...]) -> LevelSize:
    level, quantizer = model.levels[name], model.quantizers[name]
    assert isinstance(level, Level)
    enlargement = model.enlargements[name] if model.enlargements is not None and name in model.enlargements else None
    encoder, own = learned_numbers(level.encoder, level.projection), learned_numbers(quantizer)
    return LevelSize(
        encoder=encoder,
        # The merge, and the absent vector, which is the level's own.
        decoder=learned_numbers(level, enlargement) - encoder - own,
        quantizer=own,
        grid=grid,
        codebook_size=quantizer.codebook_size if quantizer.discrete else None,
        codes=math.prod(grid) * quantizer.codes_per_position if quantizer.discrete else None,
    )


def learned_numbers(*modules: nn.Module | None) -> int:
    """How many numbers modules learn, None among them none: parameters, and codebooks taught by moving averages."""
    learned = {
        id(tensor): tensor.numel()
        for module in modules
        if module is not None
        for part in module.modules()
        for tensor in (*part.parameters(recurse=False), *([part.vectors] if isinstance(part, Codebook) else []))
    }
    return sum(learned.values())


def autoencoder_summary(
    model: Autoencoder, image_size: Sequence[int], channels: int, training: OptimizationConfig, images: int
) -> str:
    """Learned numbers by part, codes and bits of an image against its bytes, and how long training is.

    Args:
        model: about to be trained.
        image_size: (H, W) of the images; of signals and volumes, one length or three.
        channels: C.
        training: how long, and in batches of how many images.
        images: to train on.
    """
    sizes = level_sizes(model, image_size)
    total = learned_numbers(model)
    rest = total - sum(size.encoder + size.decoder + size.quantizer for size in sizes.values())
    rows = [
        ("level", "encoder", "decoder", "quantizer", "grid", "K", "codes", "bits"),
        *((name, *_cells(size)) for name, size in sizes.items()),
        (noun(image_size), _ABSENT, f"{rest:,}", *[_ABSENT] * 5),
    ]
    lines = [
        *aligned(rows),
        f"{total:,} parameters, codebooks among them; {_compression(sizes, image_size, channels)}",
        _length(training, images, noun(image_size)),
    ]
    return "\n".join(_INDENT + line for line in lines)


def _cells(size: LevelSize) -> tuple[str, ...]:
    codes = (size.codebook_size, size.codes, size.bits)
    return (
        *(f"{number:,}" for number in (size.encoder, size.decoder, size.quantizer)),
        _times(size.grid),
        *(_ABSENT if number is None else f"{number:,.0f}" for number in codes),
    )


def _compression(sizes: Mapping[str, LevelSize], image_size: Sequence[int], channels: int) -> str:
    what, each = f"{'a' if len(image_size) != _PICTURE_AXES else 'an'} {noun(image_size)}", _bits_per_value(image_size)
    raw = math.prod(image_size) * channels * each
    bits = [size.bits for size in sizes.values()]
    known = [number for number in bits if number is not None]
    if len(known) < len(bits):
        return f"{what} has {raw:,} bits, and a gaussian level has no codes to compare them with"
    total = sum(known)
    times = f", {raw / total:,.1f} times fewer" if total else ""
    codes = sum(size.codes or 0 for size in sizes.values())
    of_values = "" if len(image_size) == _PICTURE_AXES else f" of {each}-bit values"
    return f"{codes:,} codes, {total:,.0f} bits, for the {raw:,} bits of {what}{of_values}{times}"


def _bits_per_value(image_size: Sequence[int]) -> int:
    """Of what samples are usually stored in: images in bytes, sounds and scans in twice as many bits."""
    return 8 if len(image_size) == _PICTURE_AXES else 16


def prior_summary(prior: nn.Module, codes: CodeFolder, level: str, training: OptimizationConfig) -> str:
    """Parameters of a prior, the codes of an image that it is to predict, and how long training is.

    Args:
        prior: about to be trained.
        codes: to train on.
        level: of the prior.
        training: how long, and in batches of how many grids.
    """
    grid, size = codes.grids[level], codes.codebook_sizes[level]
    several = codes.description.codes_per_position.get(level, 1)
    each = f", {several} at each position" if several > 1 else ""
    lines = [
        f"{learned_numbers(prior):,} parameters; {math.prod(grid) * several:,} codes per image ({_times(grid)}{each}), "
        f"K {size:,}",
        *([f"told a vector of {codes.vector_size:,} numbers for each image"] if codes.vector_size else []),
        f"nats per code: log K {math.log(size):.3f}, unigram entropy {codes.entropy(level):.3f}",
        _length(training, len(codes), "grid"),
    ]
    return "\n".join(_INDENT + line for line in lines)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _length(training: OptimizationConfig, samples: int, what: str) -> str:
    passes = training.steps * training.batch_size / max(1, samples)
    return f"{training.steps:,} steps of {training.batch_size:,} {what}s, {passes:,.1f} times through all of them"


def outcome(run: RunFolder, stage: str, *, steps: int, seconds: float, left: Path) -> str:
    """What has come of a stage, and where it lies.

    Args:
        run: the lines of whose log give the numbers.
        stage: its name in the log.
        steps: that were taken.
        seconds: that it took.
        left: the folder of the model.
    """
    lines = [row for row in run.lines() if row.get("stage") == stage]
    where = [path for path in (run.metrics_lines, run.path / "tensorboard" / stage) if path.exists()]
    rows = [*_numbers(lines), ("model", str(left)), ("log", ", ".join(map(str, where)))]
    done = f"{stage}: {steps:,} steps in {duration(seconds)}"
    return "\n".join([done, *(_INDENT + line for line in aligned(rows, left=2))])


def _numbers(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Of the last lines that hold them."""
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    error = last.get("held_out_mse")
    if error is not None:
        decibels = f", {-10 * math.log10(error):.2f} dB" if error > 0 else ""
        yield "held-out error", f"{error:.4g} (mean square on [0, 1]{decibels})"
    used = [name.removeprefix("usage.") for name in last if name.startswith("usage.")]
    if used:
        texts = [f"{name} {last[f'usage.{name}']:.0%}, perplexity {last[f'perplexity.{name}']:.4g}" for name in used]
        yield "codes in use", "; ".join(texts)


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of cells in columns, the first `left` columns flush left and the others flush right.

    >>> aligned([("level", "codes"), ("top", "5")])
    ['level  codes', 'top        5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        _INDENT.join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
