"""At equal code bits two levels beat one, three beat two, and every level carries its part (VQ-VAE-2, section 3.1).

Autoencoders of one, two and three levels on CIFAR-10, the finest always on 8x8 positions, each coarser one on half the
side. Their codebooks are of such a size that an image takes as many bits, within 0.3 %: at the middle rate 480 bits are
64 codes of 181, 80 codes of 64, or 84 codes of 53. Their widths are such that they have about as many parameters, so
that what is compared is how they are stacked; all are trained alike, stacks with the level drop-out of the project's
preset for CIFAR-10, one image in ten, without which a level may end up unused: two levels at the highest rate are
trained without it too. Bits are those of the codes as they are, log2 K each, without a prior or any other entropy
coding; what is learned is not counted. Measured on held-out images:

- the mean squared error on [0, 1] at three rates, one for each size of codebook: a rate-distortion curve.
- what each level carries: the error with that level dropped (in place of its vectors the one that level drop-out has
  learned for it, or the mean of its codebook where there is none, as for the top), and with each of its codes drawn
  anew from the level's own histogram.

On photographs (BSDS500), where they are at hand, two levels are trained on crops of 64x64 and measured on 320x480, at
0.08 log2 K bits per pixel, beside JPEG, WebP and JPEG 2000 as Pillow writes them, whose bits are those of the whole
file, headers included. Rate and PSNR are averaged over photographs; a codec's PSNR at the rate of a model is
interpolated, and missing where the codec has no files that small. JPEG and WebP store colour at half the side, as they
do by default, which a PSNR over RGB holds against them. These curves are reported; the claim does not hang on them.

The claim holds if
(i) at each rate the error of two levels is below that of one, as a mean over seeds;
(ii) at each rate the error of three levels is below that of two;
(iii) at the highest rate, dropping any one level of either at least doubles its error.

    python benchmarks/claims/levels.py --quick --json claims.json --data FOLDER
"""

from __future__ import annotations

import io
import math
import sys
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plots
import torch
from frame import Options, Verdict, rounded, run_claim
from PIL import Image, features
from torch import Tensor
from training import (
    CHUNK,
    Images,
    Schedule,
    cifar10,
    codes_of,
    make_autoencoder,
    reconstruction_error,
    train_autoencoder,
)

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import AutoencoderConfig
from hvq.data import PhotoCrops, ordered_batches
from hvq.data.pixels import model_to_unit, unit_to_bytes
from hvq.histograms import count_codes

CLAIM = "levels"
SIDE = 32
# Ratios by level name, coarse to fine.
STACKS: dict[int, dict[str, int]] = {
    1: {"top": 4},
    2: {"top": 2, "bottom": 4},
    3: {"top": 2, "middle": 2, "bottom": 4},
}
NAMES = {1: "one level", 2: "two levels", 3: "three levels"}
CODE_DIMENSION = 16
LEVEL_DROPOUT = 0.1
LEAST_LOSS = 2.0
LEARNING_RATE = 2e-3
SHOWN = 10
OWN = "hvq, two levels"
CROP, PHOTOGRAPH = (64, 64), (320, 480)
# What Pillow calls each codec and what it has to be built with, its settings, and the one that decides the rate.
CODECS: dict[str, tuple[str, str, dict[str, Any], str, tuple[Any, ...]]] = {
    "JPEG": ("JPEG", "jpg", {"optimize": True}, "quality", (1, 5, 10, 20, 30, 50, 70)),
    "WebP": ("WEBP", "webp", {"method": 6}, "quality", (0, 5, 20, 40, 60, 75)),
    "JPEG 2000": (
        "JPEG2000",
        "jpg_2000",
        {"irreversible": True, "mct": 1, "quality_mode": "rates"},
        "quality_layers",
        ([120], [80], [60], [40], [25], [16]),
    ),
}


@dataclass(frozen=True)
class Plan:
    """Sizes, and how long models are trained; `codebook_sizes` are those of two levels, one for each rate."""

    images: int | None
    held_out: int | None
    steps: int
    width: int
    batch_size: int = 64
    codebook_sizes: tuple[int, ...] = (16, 64, 256)
    seeds: tuple[int, ...] = (0,)
    photographs: int = 8
    photograph_steps: int = 250
    photograph_codebook_sizes: tuple[int, ...] = (16, 64, 256)
    crops: int = 8


QUICK = Plan(10_000, 1_000, steps=250, width=32)
FULL = Plan(
    None,
    None,
    steps=3_000,
    width=64,
    seeds=(0, 1, 2),
    photographs=100,
    photograph_steps=3_000,
    photograph_codebook_sizes=(16, 64, 256, 1_024),
    crops=64,
)


# --- models of equal bits and parameters -----------------------------------------------------------------------------


def positions(levels: int) -> int:
    """Codes of an image of 32x32.

    >>> [positions(levels) for levels in STACKS]
    [64, 80, 84]
    """
    ratios = list(STACKS[levels].values())
    return sum((SIDE // math.prod(ratios[i:])) ** 2 for i in range(levels))


def codebook_size(levels: int, bits: float) -> int:
    """K with which the codes of an image take nearest to so many bits.

    >>> [codebook_size(levels, 480) for levels in STACKS]
    [181, 64, 53]
    """
    return round(2 ** (bits / positions(levels)))


def fields_of(levels: int, size: int, width: int, dropout: float) -> dict[str, Any]:
    """Of `make_autoencoder`."""
    features = {"width": width, "residual_blocks": 1, "residual_width": width // 2}
    level = {"codebook_size": size, "code_dimension": CODE_DIMENSION, **features}
    stack = {name: {"ratio": ratio, **level} for name, ratio in STACKS[levels].items()}
    return {"channels": 3, "levels": stack, "decoder": features, "level_dropout": dropout}


def parameters(levels: int, width: int) -> int:
    """Of an autoencoder but for its codebooks, which moving averages learn."""
    with torch.device("meta"):
        model = build_autoencoder(AutoencoderConfig.model_validate(fields_of(levels, 2, width, 0.0)))
    return sum(each.numel() for each in model.parameters())


def width_of(levels: int, width: int) -> int:
    """The even width with which there are nearest to as many parameters as two levels of `width` have."""
    wanted, widths = parameters(2, width), range(4, 4 * width, 2)
    above = bisect_left(widths, wanted, key=partial(parameters, levels))
    return min(widths[max(0, above - 1) : above + 1], key=lambda each: abs(parameters(levels, each) - wanted))


# --- what is measured on CIFAR-10 ------------------------------------------------------------------------------------


@torch.no_grad()
def decoded(model: Autoencoder, codes: Mapping[str, Tensor], size: tuple[int, ...], absent: str | None) -> Tensor:
    """Images in [0, 1] of codes, with a level left out."""
    parts = [{name: code[start : start + CHUNK] for name, code in codes.items()} for start in _starts(codes)]
    left_out = [absent] if absent else []
    return torch.cat([model_to_unit(model.decode(part, size=size, absent=left_out)) for part in parts])


def _starts(codes: Mapping[str, Tensor]) -> range:
    return range(0, len(next(iter(codes.values()))), CHUNK)


def drawn_anew(codes: Tensor, size: int) -> Tensor:
    """Codes of the same shape, each drawn from their histogram.

    >>> drawn_anew(torch.full((3, 2, 2), 4), 7).unique().tolist()
    [4]
    """
    torch.manual_seed(0)
    return count_codes(codes.flatten(), size)[0].double().multinomial(codes.numel(), replacement=True).view_as(codes)


def carried(model: Autoencoder, images: Tensor) -> dict[str, Tensor]:
    """Images in [0, 1] as they are rebuilt, and with each level in turn dropped or drawn anew."""
    codes, size = codes_of(model, images), tuple(images.shape[2:])
    restored = {"all levels": decoded(model, codes, size, None)}
    for name, code in codes.items():
        restored[f"{name} dropped"] = decoded(model, codes, size, name)
        anew = {**codes, name: drawn_anew(code, model.quantizers[name].codebook_size)}
        restored[f"{name} drawn anew"] = decoded(model, anew, size, None)
    return restored


def run_cell(images: Images, plan: Plan, levels: int, bits: float, dropout: float, seed: int) -> dict[str, Any]:
    """Train one model, and measure it."""
    size, width = codebook_size(levels, bits), width_of(levels, plan.width)
    model = make_autoencoder(seed, **fields_of(levels, size, width, dropout))
    schedule = Schedule(plan.steps, plan.batch_size, LEARNING_RATE)
    train_autoencoder(model, images.train, schedule, seed=seed, level_dropout=dropout)
    restored, originals = carried(model, images.held_out), images.held_out.double() / 255
    errors = {name: float((found - originals).square().mean()) for name, found in restored.items()}
    return {
        "mse": errors.pop("all levels"),
        "without": errors,
        "codebook_size": size,
        "bits": positions(levels) * math.log2(size),
        "width": width,
        "parameters": parameters(levels, width),
        "images": {name: unit_to_bytes(found[:SHOWN]).tolist() for name, found in restored.items()},
    }


# --- photographs -----------------------------------------------------------------------------------------------------


def psnr(mse: float) -> float:
    """Decibels, of an error on [0, 1].

    >>> round(psnr(0.01), 6)
    20.0
    """
    return -10 * math.log10(mse)


def read_photographs(folder: Path) -> list[Image.Image]:
    """All of a folder, by name."""
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.jpg"))]


def upright(photograph: Image.Image) -> Image.Image:
    """The middle 320x480 of a photograph, which is turned where it stands.

    >>> upright(Image.new("RGB", (321, 481))).size
    (480, 320)
    """
    if photograph.height > photograph.width:
        photograph = photograph.transpose(Image.Transpose.ROTATE_90)
    height, width = PHOTOGRAPH
    left, top = (photograph.width - width) // 2, (photograph.height - height) // 2
    return photograph.crop((left, top, left + width, top + height))


def tensor_of(photograph: Image.Image) -> Tensor:
    """uint8 `[3, H, W]`."""
    return torch.from_numpy(np.array(photograph)).movedim(-1, 0)


def crops_of(photographs: list[Image.Image], plan: Plan) -> Tensor:
    """uint8 `[n, 3, 64, 64]` at random places."""
    names = [str(i) for i in range(len(photographs))]
    source = PhotoCrops(photographs, names, size=CROP, crops_per_photo=plan.crops)
    return torch.cat([batch.images for batch in ordered_batches(source, chunk_size=CHUNK)])


def model_point(crops: Tensor, held_out: list[Image.Image], plan: Plan, size: int) -> dict[str, float]:
    """Train two levels of one size of codebook; bits per pixel and mean PSNR of photographs."""
    model = make_autoencoder(0, **fields_of(2, size, plan.width, LEVEL_DROPOUT))
    schedule = Schedule(plan.photograph_steps, 16, LEARNING_RATE)
    train_autoencoder(model, crops, schedule, seed=0, level_dropout=LEVEL_DROPOUT)
    errors = [reconstruction_error(model, tensor_of(photograph).unsqueeze(0)) for photograph in held_out]
    bits = math.log2(size) * sum(math.prod(grid) for grid in model.grids(PHOTOGRAPH).values())
    return {"bits_per_pixel": bits / math.prod(PHOTOGRAPH), "psnr": float(np.mean([psnr(each) for each in errors]))}


def codec_point(photographs: list[Image.Image], name: str, value: Any) -> dict[str, float]:
    """Bits per pixel of whole files, and mean PSNR, with one setting of a codec."""
    kind, _, settings, setting, _ = CODECS[name]
    rates, decibels = [], []
    for photograph in photographs:
        file = io.BytesIO()
        photograph.save(file, format=kind, **{**settings, setting: value})
        rates.append(8 * len(file.getvalue()) / math.prod(PHOTOGRAPH))
        restored = np.asarray(Image.open(file).convert("RGB"), np.float64)
        decibels.append(psnr(float(np.square((restored - np.asarray(photograph, np.float64)) / 255).mean())))
    return {"bits_per_pixel": float(np.mean(rates)), "psnr": float(np.mean(decibels))}


def held_out_photographs(folder: Path, plan: Plan) -> list[Image.Image]:
    """The first so many, all 480 wide and 320 high."""
    return [upright(photograph) for photograph in read_photographs(folder / "val")[: plan.photographs]]


def model_cell(folder: Path, plan: Plan, size: int) -> dict[str, float]:
    """One point of the model's curve."""
    crops = crops_of(read_photographs(folder / "train"), plan)
    return model_point(crops, held_out_photographs(folder, plan), plan, size)


def codec_cell(folder: Path, plan: Plan, name: str) -> list[dict[str, float]]:
    """The whole curve of a codec."""
    photographs = held_out_photographs(folder, plan)
    return [codec_point(photographs, name, value) for value in CODECS[name][-1]]


def photograph_curves(plan: Plan, options: Options) -> dict[str, list[dict[str, float]]]:
    """Points of rising rate by name; none where there are no photographs."""
    folder = options.data / "bsds-train"
    if not all((folder / split).is_dir() for split in ("train", "val")):
        print(f"there are no photographs in {folder}: without their curves", file=sys.stderr)
        return {}
    training = {name: getattr(plan, name) for name in ("photograph_steps", "crops", "width")}
    curves = {
        OWN: [
            options.cells.of(
                {"photographs": plan.photographs, **training, "codebook_size": size},
                partial(model_cell, folder, plan, size),
            )
            for size in plan.photograph_codebook_sizes
        ]
    }
    for name, (_, feature, *_) in CODECS.items():
        if not features.check(feature):
            print(f"this Pillow was built without {name}: without its curve", file=sys.stderr)
            continue
        about = {"photographs": plan.photographs, "codec": name}
        curves[name] = options.cells.of(about, partial(codec_cell, folder, plan, name))
    return curves


def at_rate(curve: list[dict[str, float]], rate: float) -> float | None:
    """PSNR of a curve at a rate, by interpolation; None beyond its ends.

    >>> at_rate([{"bits_per_pixel": 1.0, "psnr": 20.0}, {"bits_per_pixel": 2.0, "psnr": 30.0}], 1.5)
    25.0
    """
    rates = [point["bits_per_pixel"] for point in curve]
    if not min(rates) <= rate <= max(rates):
        return None
    ordered = sorted(curve, key=lambda point: point["bits_per_pixel"])
    return float(np.interp(rate, sorted(rates), [point["psnr"] for point in ordered]))


def photograph_numbers(curves: dict[str, list[dict[str, float]]]) -> Any:
    """The model's points, and each codec's PSNR at the same rate."""
    if not curves:
        return "not at hand"
    codecs = [name for name in curves if name != OWN]
    return [
        {
            "bits_per_pixel": point["bits_per_pixel"],
            "psnr": {OWN: point["psnr"]} | {name: at_rate(curves[name], point["bits_per_pixel"]) for name in codecs},
        }
        for point in curves[OWN]
    ]


# --- the verdict -----------------------------------------------------------------------------------------------------

Cells = dict[int, dict[int, list[dict[str, Any]]]]
"""By number of levels, then by rate, one for each seed."""


def mean_errors(cells: Cells) -> dict[int, dict[int, float]]:
    """By number of levels, then by rate, over seeds."""
    return {
        levels: {bits: float(np.mean([cell["mse"] for cell in found])) for bits, found in by_bits.items()}
        for levels, by_bits in cells.items()
    }


def losses(cells: Cells) -> dict[str, dict[str, float]]:
    """How many times the error of all levels is that without one of them, at the highest rate, over seeds."""
    return {
        NAMES[levels]: {
            name: float(np.mean([cell["without"][name] / cell["mse"] for cell in by_bits[max(by_bits)]]))
            for name in by_bits[max(by_bits)][0]["without"]
        }
        for levels, by_bits in cells.items()
        if levels > 1
    }


def parts_of(errors: Mapping[int, Mapping[int, float]], lost: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
    """The three parts of the criterion."""
    return {
        "two_below_one": all(errors[2][bits] < errors[1][bits] for bits in errors[2]),
        "three_below_two": all(errors[3][bits] < errors[2][bits] for bits in errors[2]),
        "each_level_carries": all(
            times >= LEAST_LOSS for found in lost.values() for name, times in found.items() if name.endswith("dropped")
        ),
    }


def draw(cells: Cells, curves: dict[str, list[dict[str, float]]], images: Images, folder: Path) -> None:
    """What two levels carry, in pictures; below, the curves."""
    drawn = plots.Figure(figsize=(9.4, 7.4), layout="constrained", facecolor="white")
    above, below = drawn.subfigures(2, 1, height_ratios=(1.3, 1))
    best = cells[2][max(cells[2])][0]["images"]
    rows = {"held out": images.held_out[:SHOWN]}
    rows |= {name: torch.tensor(found, dtype=torch.uint8) for name, found in best.items()}
    for axis, (name, strip) in zip(above.subplots(len(rows), 1), rows.items(), strict=True):
        plots.strip_of_images(axis, strip, name)
    left, right = below.subplots(1, 2)
    for colour, (levels, errors) in zip(plots.COLOURS, mean_errors(cells).items(), strict=False):
        bits = [cells[levels][rate][0]["bits"] for rate in errors]
        left.plot(bits, [psnr(error) for error in errors.values()], "o-", color=colour, label=NAMES[levels])
    plots.label(left, "CIFAR-10, equal code bits and parameters", "bits per image", "PSNR, dB")
    left.legend(fontsize=8)
    for colour, (name, curve) in zip(plots.COLOURS, curves.items(), strict=False):
        points = [[point[key] for point in curve] for key in ("bits_per_pixel", "psnr")]
        right.plot(*points, "o-", markersize=4, color=colour, label=name)
    plots.label(right, "photographs, 320x480", "bits per pixel", "PSNR, dB")
    if curves:
        right.legend(fontsize=8)
    else:
        right.text(0.5, 0.5, "not at hand", ha="center", transform=right.transAxes, color=plots.INK)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=plots.RULE, linewidth=0.6)
    plots.save(drawn, folder, CLAIM)


def cells_of(
    images: Images, plan: Plan, options: Options, levels: int, bits: int, dropout: float
) -> list[dict[str, Any]]:
    """One for each seed."""
    about = {name: getattr(plan, name) for name in ("images", "held_out", "steps", "width", "batch_size")}
    return [
        options.cells.of(
            {**about, "levels": levels, "bits": bits, "level_dropout": dropout, "seed": seed},
            partial(run_cell, images, plan, levels, bits, dropout, seed),
        )
        for seed in plan.seeds
    ]


def measure(options: Options) -> Verdict:
    """All models at all rates, and the photographs."""
    plan = QUICK if options.quick else FULL
    images = cifar10(options.data, train=plan.images, held_out=plan.held_out)
    rates = [round(positions(2) * math.log2(size)) for size in plan.codebook_sizes]
    run = partial(cells_of, images, plan, options)
    cells = {
        levels: {bits: run(levels, bits, LEVEL_DROPOUT if levels > 1 else 0.0) for bits in rates} for levels in STACKS
    }
    plain = {2: {max(rates): run(2, max(rates), 0.0)}}
    curves = photograph_curves(plan, options)
    draw(cells, curves, images, options.plots)
    errors, lost = mean_errors(cells), losses(cells)
    parts = parts_of(errors, lost)
    numbers: dict[str, Any] = {
        "parts": parts,
        "mse": {f"{bits} bits": {NAMES[levels]: errors[levels][bits] for levels in STACKS} for bits in rates},
        "times_the_error": lost,
        "two_levels_without_level_dropout": {
            "mse": mean_errors(plain)[2][max(rates)],
            "times_the_error": losses(plain)[NAMES[2]],
        },
        "bits": {NAMES[levels]: [found[0]["bits"] for found in by_bits.values()] for levels, by_bits in cells.items()},
        "parameters": {NAMES[levels]: by_bits[rates[0]][0]["parameters"] for levels, by_bits in cells.items()},
        "photographs": photograph_numbers(curves),
        "about": asdict(plan),
    }
    return Verdict(CLAIM, all(parts.values()), rounded(numbers))


def main(words: list[str] | None = None) -> int:
    """The command line."""
    return run_claim(__file__, __doc__, measure, words)


if __name__ == "__main__":
    sys.exit(main())
