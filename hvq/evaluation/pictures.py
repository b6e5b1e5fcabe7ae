"""Labelled grids of images, drawn by Pillow alone.

They have a transparent ground and grey labels, so that they read on light and on dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hvq.errors import DataError

SMALLEST_CELL = 64
"""Images whose larger side is shorter than this are enlarged, by a whole number, without smoothing."""

LARGEST_CELL = 256
"""Images whose larger side is longer than this are reduced: a report is looked at, not measured."""

LABEL_INK = "#7b8494"


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
    """The one that matplotlib ships, for class names may be of many scripts; else Pillow's own, of Latin letters."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _pillow_images(images: Tensor) -> list[Image.Image]:
    visible = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return [Image.fromarray(array) for array in visible.permute(0, 2, 3, 1).cpu().contiguous().numpy()]


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    smaller = size[0] < picture.width
    return picture.resize(size, Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)
