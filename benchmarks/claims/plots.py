"""Plots of the claims: one size, one set of colours, one PNG for each claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hvq.evaluation.plots import COLOURS, INK, RULE


def figure(rows: int, columns: int, *, width: float = 4.2, height: float = 3.2, **arguments: Any) -> tuple[Figure, Any]:
    """A figure and its axes, `[rows, columns]` always; sizes in inches of each panel."""
    drawn = Figure(figsize=(columns * width, rows * height), layout="constrained", facecolor="white")
    axes = drawn.subplots(rows, columns, squeeze=False, **arguments)
    for axis in axes.flat:
        axis.set_prop_cycle(color=COLOURS)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=RULE, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(colors=INK, labelsize=9)
    return drawn, axes


def label(axis: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title and names of the axes."""
    axis.set_title(title, fontsize=10, color=INK)
    axis.set_xlabel(x, fontsize=9, color=INK)
    axis.set_ylabel(y, fontsize=9, color=INK)


def strip_of_images(axis: Axes, images: Tensor, title: str) -> None:
    """One row of uint8 images `[n, C, H, W]`, side by side, with a text at its left."""
    count, channels, height, width = images.shape
    strip = np.full((height, count * (width + 1) - 1, channels), 255, np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        strip[:, i * (width + 1) : i * (width + 1) + width] = image
    axis.imshow(strip.squeeze(-1) if channels == 1 else strip, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9, color=INK)


def save(drawn: Figure, folder: Path, claim: str) -> None:
    """As `claim.png`, in a folder that is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    # Without the version of the library, so that equal numbers are equal files.
    drawn.savefig(folder / f"{claim}.png", dpi=110, metadata={"Software": None})
