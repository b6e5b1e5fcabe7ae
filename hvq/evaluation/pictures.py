"""Pictures of a run: labelled grids of images, code-usage histograms, and training curves.

Everything is returned as a Pillow image. Grids have a transparent ground and grey labels, so that they read on light
and on dark pages; plots are drawn with matplotlib's objects and leave its global state alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hvq.errors import DataError
from hvq.histograms import perplexity
from hvq.level_names import in_level_order

SMALLEST_CELL = 64
"""Images whose larger side is shorter than this are enlarged, by a whole number, without smoothing."""

LARGEST_CELL = 256
"""Images whose larger side is longer than this are reduced: a report is looked at, not measured."""

INK = "#3b4252"
LABEL_INK = "#7b8494"
RULE = "#d9dde3"
COLOURS = ("#2f6fb3", "#d97a27", "#3a9a6b", "#b8477f", "#7a5bb5", "#8a7433", "#3c9aa8", "#c1503f")
"""One colour per level, coarse to fine; the same level has the same colour in every plot."""

Row = Mapping[str, Any]
Points = tuple[list[float], list[float]]

# --- grids of images ------------------------------------------------------------------------------------------------


def image_grid(
    rows: Sequence[Tensor],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    upscale: int | None = None,
    gap: int = 6,
) -> Image.Image:
    """Rows of images with gaps between them and labels beside them.

    Args:
        rows: for each row, uint8 [n, C, H, W]; n may differ between rows. With fewer than three channels the first is
            shown in grey, otherwise the first three as RGB.
        row_labels: a text for each row, left of it; none at all if empty.
        column_labels: texts above the columns; none at all if empty.
        upscale: how many times larger to draw, by repeating pixels; by default so that small images are visible.
            Images with a side above 256 pixels are then reduced.
        gap: pixels between images.

    Returns:
        A picture in RGBA.

    Raises:
        DataError: where images are not uint8 [n, C, H, W] of one size, or labels do not match the rows.

    Example:
        >>> image_grid([torch.zeros(4, 1, 32, 32, dtype=torch.uint8)] * 2, gap=4).size
        (268, 132)
    """
    height, width = _common_size(rows)
    if row_labels and len(row_labels) != len(rows):
        raise DataError(f"a grid of {len(rows)} rows takes as many row labels; received {len(row_labels)}")
    height, width = _cell_size(height, width, upscale)
    font = _font(max(13, min(18, height // 5)))
    left = max((math.ceil(font.getlength(label)) + 12 for label in row_labels), default=0)
    top = font.size * 3 // 2 if column_labels else 0
    columns = max(len(row) for row in rows)
    size = (left + columns * (width + gap) - gap, top + len(rows) * (height + gap) - gap)
    canvas = Image.new("RGBA", (max(1, round(size[0])), max(1, round(size[1]))), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(column_labels):
        draw.text((left + column * (width + gap) + width / 2, 0), label, LABEL_INK, font, anchor="ma")
    for index, row in enumerate(rows):
        y = round(top) + index * (height + gap)
        if row_labels:
            draw.text((2, y + height / 2), row_labels[index], LABEL_INK, font, anchor="lm")
        for column, picture in enumerate(_pillow_images(row)):
            canvas.paste(_resized(picture, (width, height)), (left + column * (width + gap), y))
    return canvas


def reconstruction_grid(originals: Tensor, reconstructions: Mapping[str, Tensor], **options: Any) -> Image.Image:
    """Originals in the first row, and below them their reconstructions from more and more levels.

    Args:
        originals: uint8 [n, C, H, W].
        reconstructions: label ("top", "top + bottom") to uint8 [n, C, H, W], in the order to be shown.
        options: of `image_grid`.

    Example:
        >>> images = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
        >>> reconstruction_grid(images, {"top": images, "top + bottom": images}).height
        204
    """
    return image_grid(
        [originals, *reconstructions.values()], row_labels=["original", *reconstructions.keys()], **options
    )


def sample_grid(
    images: Tensor,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    *,
    columns: int = 10,
    **options: Any,
) -> Image.Image:
    """Samples, one row per class.

    Args:
        images: uint8 [n, C, H, W].
        labels: integers [n]; without them the images fill rows in their order.
        class_names: the name of each label; by default the label itself.
        columns: most images in a row.
        options: of `image_grid`.

    Example:
        >>> samples = torch.zeros(6, 1, 32, 32, dtype=torch.uint8)
        >>> sample_grid(samples, torch.tensor([0, 1, 1, 0, 1, 1]), ["cat", "dog"]).height
        134
    """
    if labels is None:
        return image_grid(images.split(columns), **options)
    present = [int(label) for label in labels.unique()]
    names = [str(label) if class_names is None else class_names[label] for label in present]
    return image_grid([images[labels == label][:columns] for label in present], row_labels=names, **options)


def _common_size(rows: Sequence[Tensor]) -> tuple[int, int]:
    sizes = {tuple(row.shape[1:]) for row in rows}
    if len(sizes) != 1 or any(row.dtype != torch.uint8 or row.ndim != 4 for row in rows):
        received = ", ".join(f"{row.dtype} {list(row.shape)}" for row in rows) or "no rows"
        raise DataError(f"rows of a grid must be uint8 [n, C, H, W] of one size; received {received}")
    height, width = rows[0].shape[2:]
    return height, width


def _cell_size(height: int, width: int, upscale: int | None) -> tuple[int, int]:
    longest = max(height, width)
    scale: float = upscale or max(1, math.ceil(SMALLEST_CELL / longest))
    if upscale is None and longest > LARGEST_CELL:
        scale = LARGEST_CELL / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships this font, so that labels look alike everywhere and class names may be of many scripts.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _pillow_images(images: Tensor) -> list[Image.Image]:
    visible = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return [Image.fromarray(array) for array in visible.permute(0, 2, 3, 1).cpu().contiguous().numpy()]


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    smaller = size[0] < picture.width
    return picture.resize(size, Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)


# --- plots ----------------------------------------------------------------------------------------------------------


def usage_histogram(counts: Mapping[str, Tensor], level_names: Sequence[str]) -> Image.Image:
    """How often each code occurs, most frequent first, one panel per level; the dashed line is equal use of all codes.

    Args:
        counts: [K] per level, how often each code occurs.
        level_names: the levels, coarse to fine.

    Example:
        >>> usage_histogram({"top": torch.tensor([5, 3, 0])}, ["top"]).mode
        'RGB'
    """
    ordered = in_level_order(counts, level_names, "code counts")
    columns = min(3, len(ordered))
    lines = math.ceil(len(ordered) / columns)
    figure = Figure(figsize=(8.4, 2.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for index, (axes, (level, level_counts)) in enumerate(zip(panels, ordered.items(), strict=False)):
        _draw_usage(axes, level, level_counts, _colour(index))
    for axes in panels[len(ordered) :]:
        axes.remove()
    return _rendered(figure)


def training_curves(
    rows: Sequence[Row], level_names: Sequence[str], *, unigram_entropy: Mapping[str, float] | None = None
) -> dict[str, Image.Image]:
    """Loss and perplexity of the autoencoder, and nats per code of each prior, over optimizer steps.

    Args:
        rows: the lines of `metrics.jsonl`: "stage" ("autoencoder" or "prior.<level>"), "step", and numbers: "loss",
            "reconstruction", "perplexity.<level>" for the one; "nats", "held_out_nats" for the other. What is not
            there is not drawn; where a step occurs twice, as after a resumed run, the later line counts.
        level_names: the levels, coarse to fine.
        unigram_entropy: nats per code by level, drawn as a dashed line; a row's own "unigram_entropy" otherwise.

    Returns:
        A picture per stage that has anything to draw, in the order of stages.

    Example:
        >>> rows = [{"stage": "prior.top", "step": step, "nats": 4.0 - step / 100} for step in (0, 50, 100)]
        >>> list(training_curves(rows, ["top"], unigram_entropy={"top": 4.2}))
        ['prior.top']
    """
    entropies = unigram_entropy or {}
    pictures = {"autoencoder": _autoencoder_curves(_of_stage(rows, "autoencoder"), level_names)}
    for index, level in enumerate(level_names):
        stage = _of_stage(rows, f"prior.{level}")
        pictures[f"prior.{level}"] = _prior_curves(stage, level, _colour(index), entropies.get(level))
    return {stage: picture for stage, picture in pictures.items() if picture is not None}


def rejection_curve(shares: Mapping[str, Mapping[str, Any]]) -> Image.Image | None:
    """Precision over recall as fewer samples are kept, and both, with accuracy, over the share that is kept.

    Args:
        shares: by the share that is kept, "1" or "0.25", `precision`, `recall` and `accuracy`; what is None, or not
            there, is not drawn.

    Returns:
        The picture; None where no share has both precision and recall.

    Example:
        >>> rejection_curve({"1": {"precision": 0.7, "recall": 0.6}, "0.5": {"precision": 0.8, "recall": 0.4}}).mode
        'RGB'
        >>> rejection_curve({})
    """
    rows = [(float(share), values) for share, values in shares.items()]
    rows = sorted(
        (row for row in rows if row[1].get("precision") is not None and row[1].get("recall") is not None),
        key=lambda row: row[0],
    )
    if not rows:
        return None
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    trade, parts = figure.subplots(1, 2)
    recall, precision = ([values[name] for _, values in rows] for name in ("recall", "precision"))
    trade.plot(recall, precision, color=_colour(0), marker="o", markersize=4, linewidth=1.8)
    for (share, _), x, y in zip(rows, recall, precision, strict=True):
        trade.annotate(f"{share:g}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color=LABEL_INK)
    _style(trade, "precision over recall, by share kept", "recall")
    trade.set_ylabel("precision")
    for index, name in enumerate(("precision", "recall", "accuracy")):
        points = [(share, values[name]) for share, values in rows if values.get(name) is not None]
        _draw_line(parts, ([x for x, _ in points], [y for _, y in points]), name, _colour(index))
    parts.set_xscale("log", base=2)
    parts.set_xticks([share for share, _ in rows], [f"{share:g}" for share, _ in rows])
    parts.set_ylim(0, 1.03)
    _style(parts, "by share kept", "share of samples kept")
    _legend(parts)
    return _rendered(figure)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _draw_usage(axes: Axes, level: str, counts: Tensor, colour: str) -> None:
    shares = counts.double().flatten().sort(descending=True).values / max(1.0, float(counts.sum()))
    used = int((counts > 0).sum())
    spread = perplexity(counts) if used else 0.0
    axes.stairs(100.0 * shares.cpu().numpy(), np.arange(len(shares) + 1), fill=True, color=colour)
    axes.axhline(100.0 / len(shares), color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, len(shares))
    _style(axes, f"{level}: {used} of {len(shares)} used, perplexity {spread:.0f}", "code, most frequent first")
    axes.set_ylabel("share of positions, %")


def _of_stage(rows: Sequence[Row], stage: str) -> list[Row]:
    """Lines of one stage by step, the later of two with the same step and the same numbers."""
    merged: dict[float, dict[str, Any]] = {}
    for row in rows:
        if row.get("stage") == stage and "step" in row:
            merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def _points(rows: Sequence[Row], key: str) -> Points:
    """Steps and values of the rows that have a finite number under `key`."""
    found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def _autoencoder_curves(rows: Sequence[Row], level_names: Sequence[str]) -> Image.Image | None:
    losses = {key: _points(rows, key) for key in ("loss", "reconstruction", "held_out_reconstruction")}
    perplexities = {level: _points(rows, f"perplexity.{level}") for level in level_names}
    panels = [drawn for drawn in (losses, perplexities) if any(steps for steps, _ in drawn.values())]
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.0) if len(panels) > 1 else (6.3, 3.0), layout="constrained")
    for axes, drawn in zip(figure.subplots(1, len(panels), squeeze=False).flatten(), panels, strict=True):
        for index, (name, points) in enumerate(drawn.items()):
            _draw_line(axes, points, name.replace("_", " "), _colour(index) if drawn is perplexities else _ink(index))
        _style(axes, "loss" if drawn is losses else "perplexity", "optimizer step")
        if drawn is losses:
            _logarithmic(axes)
        _legend(axes)
    return _rendered(figure)


def _prior_curves(rows: Sequence[Row], level: str, colour: str, entropy: float | None) -> Image.Image | None:
    training, held_out = _points(rows, "nats"), _points(rows, "held_out_nats")
    if not training[0] and not held_out[0]:
        return None
    figure = Figure(figsize=(6.3, 3.0), layout="constrained")
    axes = figure.subplots()
    _draw_line(axes, training, "training", colour, faint=bool(held_out[0]))
    _draw_line(axes, held_out, "held out", colour)
    known = entropy if entropy is not None else next(reversed(_points(rows, "unigram_entropy")[1]), None)
    if known is not None:
        axes.axhline(known, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="unigram entropy")
    _style(axes, f"prior of level {level}: nats per code", "optimizer step")
    _legend(axes)
    return _rendered(figure)


def _ink(index: int) -> str:
    return (INK, "#8f9bb0", "#b8477f")[index]


def _draw_line(axes: Axes, points: Points, label: str, colour: str, *, faint: bool = False) -> None:
    if points[0]:
        marker = "o" if len(points[0]) == 1 else None
        alpha, width = (0.45, 1.2) if faint else (1.0, 1.8)
        axes.plot(*points, color=colour, label=label, alpha=alpha, linewidth=width, marker=marker, markersize=4)


def _logarithmic(axes: Axes) -> None:
    if all((np.asarray(line.get_ydata(), float) > 0).all() for line in axes.get_lines()):
        axes.set_yscale("log")


def _style(axes: Axes, title: str, x_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x_label)
    axes.tick_params(which="both", colors=INK, labelsize=8, length=0)
    axes.xaxis.label.set(color=LABEL_INK, fontsize=9)
    axes.yaxis.label.set(color=LABEL_INK, fontsize=9)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)


def _legend(axes: Axes) -> None:
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _rendered(figure: Figure) -> Image.Image:
    figure.set_dpi(160)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
