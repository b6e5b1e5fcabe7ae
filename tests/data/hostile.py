"""Files that claim what they are not, and kinds of pictures that are seldom met."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.data.kinds import encoded, picture

CLAIMED = 50_000


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _claiming_png() -> bytes:
    content = bytearray(encoded(0))
    content[16:24] = struct.pack(">II", CLAIMED, CLAIMED)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def _claiming_jpeg() -> bytes:
    content = bytearray(encoded(0, "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", CLAIMED, CLAIMED)
    return bytes(content)


def _claiming_bmp() -> bytes:
    content = bytearray(encoded(0, "BMP"))
    content[18:26] = struct.pack("<ii", CLAIMED, CLAIMED)
    return bytes(content)


def _claiming_gif() -> bytes:
    content = bytearray(encoded(0, "GIF"))
    content[6:10] = struct.pack("<HH", CLAIMED, CLAIMED)
    return bytes(content)


def _claiming_tiff() -> bytes:
    entries = [
        (256, CLAIMED),
        (257, CLAIMED),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, CLAIMED),
        (279, 9),
    ]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + fields + bytes(4)


def _claiming_ppm() -> bytes:
    return f"P6 {CLAIMED} {CLAIMED} 255 ".encode() + bytes(100)


def _zipped_text() -> bytes:
    """A PNG whose remark unpacks to far more than it holds."""
    content = encoded(0)
    remark = b"Comment\0\0" + zlib.compress(bytes(2**27))
    chunk = struct.pack(">I", len(remark)) + b"zTXt" + remark + struct.pack(">I", zlib.crc32(b"zTXt" + remark))
    return content[:33] + chunk + content[33:]


# What cannot be read, by the name of a file.
UNREADABLE: dict[str, Callable[[], bytes]] = {
    "empty.jpg": lambda: b"",
    "text.png": lambda: b"this is no picture",
    "truncated.jpg": lambda: saved(picture(0, 97, 101), "JPEG")[:5_000],
    "truncated.png": lambda: saved(picture(0, 97, 101), "PNG")[:5_000],
    "truncated.webp": lambda: saved(picture(0, 97, 101), "WEBP")[:1_000],
    "truncated.gif": lambda: saved(picture(0, 97, 101), "GIF")[:5_000],
    "truncated.tiff": lambda: saved(picture(0, 97, 101), "TIFF")[:5_000],
    "claiming.png": _claiming_png,
    "claiming.jpg": _claiming_jpeg,
    "claiming.bmp": _claiming_bmp,
    "claiming.gif": _claiming_gif,
    "claiming.tiff": _claiming_tiff,
    "claiming.ppm": _claiming_ppm,
    "zipped.png": _zipped_text,
    "float.tiff": lambda: saved(Image.new("F", (3, 5)), "TIFF"),
    "wide.tiff": lambda: saved(Image.fromarray(np.full((5, 3), 70_001, np.int32)), "TIFF"),
    "signed.tiff": lambda: saved(Image.fromarray(np.full((5, 3), -7, np.int32)), "TIFF"),
    # Pillow would start another program to see it.
    "postscript.png": lambda: saved(picture(0), "EPS"),
}


def _plain(shade: int, height: int = 5, width: int = 3) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), shade, np.uint8))


def _turned() -> bytes:
    image = Image.fromarray(np.repeat(np.array([[0], [200]], np.uint8), 4, axis=1).repeat(2, axis=0))
    exif = image.getexif()
    # The first row of what is stored is the right side of what is seen.
    exif[0x0112] = 6
    return saved(image, "PNG", exif=exif)


def _damaged_exif() -> bytes:
    """Turned to the left, and with text where a number should be, which Pillow reads and cannot write again."""
    entries = struct.pack(">HHI4s", 0x00FF, 2, 2, b"a") + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)


def _see_through() -> bytes:
    image = Image.new("P", (3, 5), 1)
    image.putpalette([9, 9, 9, 70, 80, 90])
    return saved(image, "PNG", transparency=1)


def _animated(kind: str) -> bytes:
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(_plain(40), kind, save_all=True, append_images=[_plain(180), _plain(250)], **options)


# What can be, with the pixels that it has at 4x4, by name: one shade in each channel, or rows of the left column.
READABLE: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "grey.png": (lambda: saved(Image.new("L", (3, 5), 90), "PNG"), (90, 90, 90)),
    "cmyk.jpg": (lambda: saved(Image.new("CMYK", (3, 5), (0, 0, 0, 155)), "JPEG", quality=100), (100, 100, 100)),
    "16-bit.png": (lambda: saved(Image.fromarray(np.full((5, 3), 40_000, np.uint16)), "PNG"), (156, 156, 156)),
    "16-bit.tiff": (lambda: saved(Image.fromarray(np.full((5, 3), 40_000, np.uint16)), "TIFF"), (156, 156, 156)),
    "see-through.png": (_see_through, (255, 255, 255)),
    "half.png": (lambda: saved(Image.new("RGBA", (3, 5), (0, 0, 0, 51)), "PNG"), (204, 204, 204)),
    "one-bit.png": (lambda: saved(Image.new("1", (3, 5), 1), "PNG"), (255, 255, 255)),
    "dot.png": (lambda: saved(_plain(77, 1, 1), "PNG"), (77, 77, 77)),
    "line.png": (lambda: saved(_plain(77, 1, 30_011), "PNG"), (77, 77, 77)),
    "column.jpg": (lambda: saved(_plain(77, 30_011, 1), "JPEG", quality=100), (77, 77, 77)),
    "animated.gif": (lambda: _animated("GIF"), (40, 40, 40)),
    "animated.png": (lambda: _animated("PNG"), (40, 40, 40)),
    "animated.webp": (lambda: _animated("WEBP"), (40, 40, 40)),
    # What their cameras say is damaged, in part or all of it.
    "remark.jpg": (lambda: saved(_plain(77), "JPEG", quality=100, exif=_damaged_exif()), (77, 77, 77)),
    "remark.png": (lambda: saved(_plain(77), "PNG", exif=b"this is none"), (77, 77, 77)),
    "upper.JPG": (lambda: saved(_plain(77), "JPEG", quality=100), (77, 77, 77)),
    "png-inside.jpg": (lambda: saved(_plain(77), "PNG"), (77, 77, 77)),
}
TURNED = _turned
