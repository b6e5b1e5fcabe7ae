"""Plots of a run: code usage, training curves, rejection.

They are Pillow images, drawn with matplotlib's objects, whose global state they leave alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from hvq.evaluation.pictures import LABEL_INK
from hvq.extras import require_package
from hvq.histograms import perplexity
from hvq.level_names import in_level_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#3b4252"
RULE = "#d9dde3"
COLOURS = ("#2f6fb3", "#d97a27", "#3a9a6b", "#b8477f", "#7a5bb5", "#8a7433", "#3c9aa8", "#c1503f")
"""One colour per level, coarse to fine; the same level has the same colour in every plot."""

Row = Mapping[str, Any]
Points = tuple[list[float], list[float]]


def require_matplotlib(module: str = "matplotlib") -> Any:
    """A module of matplotlib, which the core does without.

    Raises:
        ConfigurationError: where it is not installed.
    """
    return require_package(module, what="plots are drawn with matplotlib", extra="report")


def usage_histogram(counts: Mapping[str, Tensor], level_names: Sequence[str]) -> Image.Image:
    """How often each code occurs, most frequent first, one panel per level; the dashed line is equal use of all codes.

    Args:
        counts: [K] per level, how often each code occurs.
        level_names: the levels, coarse to fine.

    Example:
        >>> import torch
        >>> usage_histogram({"top": torch.tensor([5, 3, 0])}, ["top"]).mode
        'RGB'
    """
    ordered = in_level_order(counts, level_names, "code counts")
    columns = min(3, len(ordered))
    lines = math.ceil(len(ordered) / columns)
    figure = _figure(8.4, 2.7 * lines)
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
    figure = _figure(8.4, 3.0)
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
    figure = _figure(4.2 * len(panels) if len(panels) > 1 else 6.3, 3.0)
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
    figure = _figure(6.3, 3.0)
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


def _figure(width: float, height: float) -> Figure:
    """An empty one, its size in inches."""
    return require_matplotlib("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _rendered(figure: Figure) -> Image.Image:
    figure.set_dpi(160)
    canvas = require_matplotlib("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
