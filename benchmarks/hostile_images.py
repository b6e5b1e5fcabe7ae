"""Files among images that are damaged, absurd, of unusual kinds, or no pictures at all."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def _picture(mode: str, size: tuple[int, int] = (31, 23)) -> Image.Image:
    return Image.new(mode, size, 90 if len(mode) == 1 or mode.startswith("I") else None)


def _truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _enormous_png(path: Path) -> None:
    """A PNG of a few bytes whose header claims 50,000 x 50,000 pixels."""
    _picture("L").save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def _rotated(path: Path) -> None:
    picture = _picture("RGB")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)


def _animated(path: Path) -> None:
    _picture("L").save(path, save_all=True, append_images=[_picture("L") for _ in range(3)])


HOSTILE: dict[str, Callable[[Path], object]] = {
    "truncated.jpg": _truncated,
    "truncated.png": _truncated,
    "empty.png": lambda path: path.touch(),
    "enormous.png": _enormous_png,
    "text.png": lambda path: path.write_text("this is no picture"),
    "animated.gif": _animated,
    "cmyk.jpg": lambda path: _picture("CMYK").save(path),
    "16-bit.png": lambda path: Image.fromarray(np.full((23, 31), 40_000, np.uint16)).save(path),
    "palette.png": lambda path: _picture("RGB").quantize(4).save(path, transparency=0),
    "float.tiff": lambda path: _picture("F").save(path),
    "rotated.jpg": _rotated,
    "dot.png": lambda path: _picture("L", (1, 1)).save(path),
    "line.png": lambda path: _picture("L", (1, 3000)).save(path),
    "folder.png": lambda path: path.mkdir(),
    "fifo.png": os.mkfifo,
    "dangling.png": lambda path: path.symlink_to("nowhere.png"),
}
