"""One picture of any shape and mode, as Pillow opens it, to a tensor of the size and channels that are wanted."""

from __future__ import annotations

import io
import math
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

READ_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    # What its readers stumble over in files that are damaged on purpose.
    *(LookupError, ArithmeticError, TypeError, AttributeError, MemoryError, RuntimeError),
)
"""What Pillow raises for files that are damaged, of no known format, or absurdly large."""

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What names of image files end with, in lower case."""

# Those of the suffixes alone: for others Pillow may start another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
# Where Pillow begins to warn; it refuses twice as many only, which with conversions take gigabytes.
_MOST_PIXELS = 89_478_485


def to_tensor(picture: Image.Image) -> Tensor:
    """A grey (`L`) or RGB picture as uint8 `[C, H, W]`.

    >>> to_tensor(Image.new("RGB", (5, 3))).shape
    torch.Size([3, 3, 5])
    """
    # Channel by channel, which takes two thirds of the time of a transposition.
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in picture.split()]))


def to_picture(image: Tensor) -> Image.Image:
    """The inverse of `to_tensor`: uint8 `[C, H, W]`, with 1 or 3 channels, as a picture."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def convert(picture: Image.Image, channels: int) -> Image.Image:
    """Any mode to grey or RGB: 16 bits are scaled to 8, and what is transparent is laid on white.

    Args:
        picture: in any mode but `F`, whose range of values is unknown.
        channels: 1 for grey, 3 for RGB.

    >>> convert(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), 1).getpixel((0, 0))
    255
    """
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        # Older Pillow opens 16-bit grey as 32-bit integers; both hold 0 to 65535.
        values = np.array(picture, np.int32)
        # In place, here and below: a large picture takes hundreds of megabytes.
        np.clip(values, 0, 65535, out=values)
        values += 128
        values //= 257
        picture = Image.fromarray(values.astype(np.uint8))
        del values
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        above = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        picture = Image.new("RGB", above.size, "white")
        picture.paste(above, mask=above.getchannel("A"))
    wanted = "L" if channels == 1 else "RGB"
    return picture if picture.mode == wanted else picture.convert(wanted)


def fit(picture: Image.Image, size: Sequence[int], position: Sequence[float] = (0.5, 0.5)) -> Image.Image:
    """Resize until the wanted size is just covered, and crop to it.

    Args:
        picture: grey or RGB.
        size: height and width of the result, in pixels.
        position: where the crop lies vertically and horizontally, from 0 (top, left) to 1 (bottom, right).

    >>> fit(Image.new("L", (13, 7)), (3, 5)).size
    (5, 3)
    """
    height, width = size
    if picture.size == (width, height):
        return picture
    scale = max(height / picture.height, width / picture.width)
    # The crop lies on whole pixels of the resized picture, so that one that needs no resizing is copied as it is.
    top, left = (
        min(int(share * (free + 1)), free) / scale
        for share, free in zip(
            position, (round(picture.height * scale) - height, round(picture.width * scale) - width), strict=True
        )
    )
    right, bottom = min(left + width / scale, picture.width), min(top + height / scale, picture.height)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom))


def open_regular(path: Path) -> BinaryIO:
    """A file to read, once it is known to be one: a pipe would wait for a writer, a device might never end.

    Raises:
        OSError: where it is missing, cannot be read, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def open_picture(file: BinaryIO, *, most_pixels: float = _MOST_PIXELS) -> Image.Image:
    """What Pillow makes of a file, once its kind and its size are known to be harmless; no pixel is decoded.

    Args:
        file: at its beginning.
        most_pixels: that it may claim.

    Raises:
        OSError, ValueError: or others of `READ_ERRORS`, where it is none, or claims more pixels.
    """
    picture = Image.open(file, formats=_FORMATS)
    if picture.format == "TIFF" and picture.mode == "I":
        # Those of 16 bits without a sign have a mode of their own.
        raise ValueError(
            "its pixels are numbers of 32 bits, or with a sign, of unknown range; save it with 8 or 16 bits"
        )
    if picture.width * picture.height > most_pixels:
        raise ValueError(f"it claims {picture.width}x{picture.height} pixels, and {most_pixels:,} are the most")
    return picture


def is_readable(file: BinaryIO) -> bool:
    """Whether a picture opens and is whole. Only a file whose end looks wrong is decoded to find out.

    Args:
        file: at its beginning.
    """
    try:
        with open_picture(file) as picture:
            if picture.mode == "F":
                return False
            if not _ends_as_it_should(file, picture.format):
                file.seek(0)
                with open_picture(file) as again:
                    again.load()
    except READ_ERRORS:
        return False
    return True


def _ends_as_it_should(file: BinaryIO, kind: str | None) -> bool:
    file.seek(0)
    head = file.read(12)
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - 16))
    tail = file.read()
    if kind == "JPEG":
        return tail.endswith(b"\xff\xd9")
    if kind == "PNG":
        return b"IEND" in tail
    if kind == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= length
    return False


def decode(
    file: BinaryIO | bytes,
    *,
    size: Sequence[int],
    channels: int,
    position: Sequence[float] = (0.5, 0.5),
) -> Tensor:
    """Read an encoded picture, turned as its EXIF data say, converted, and cropped to a size.

    Args:
        file: an open file, or the bytes themselves.
        size: height and width of the result, in pixels.
        channels: 1 for grey, 3 for RGB.
        position: where the crop lies vertically and horizontally, from 0 (top, left) to 1 (bottom, right).

    Returns:
        uint8 `[C, H, W]`.

    Raises:
        OSError, ValueError: or others of `READ_ERRORS`, as Pillow does, for what cannot be read.
    """
    with open_picture(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
        read_reduced(picture, size)
        return to_tensor(fit(convert(_upright(picture), channels), size, position))


def decode_whole(file: BinaryIO, *, channels: int) -> Tensor:
    """The same, uint8 `[C, H, W]` in the size that the picture has, however large: for files that a person names.

    Args:
        file: an open file.
        channels: 1 for grey, 3 for RGB.

    Raises:
        OSError, ValueError: or others of `READ_ERRORS`, as Pillow does, for what cannot be read.
    """
    with _of_any_size(), open_picture(file, most_pixels=math.inf) as picture:
        return to_tensor(convert(_upright(picture), channels))


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Within it Pillow does not look at the number of pixels."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _upright(picture: Image.Image) -> Image.Image:
    """A picture, read and turned as its EXIF data say."""
    # Apart, for what is wrong with the pixels is to be said.
    picture.load()
    # Other viewers leave a picture as it is where they cannot make out how it was held.
    with suppress(*READ_ERRORS):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def read_reduced(picture: Image.Image, size: Sequence[int]) -> None:
    """Have JPEG skip detail that resizing would discard; twice the final size is kept, which no eye tells apart."""
    # Orientation is not known yet, so the scale is that of a square around the size.
    share = 2 * max(size) / min(picture.size)
    if share < 1:
        picture.draft(None, (math.ceil(picture.width * share), math.ceil(picture.height * share)))
