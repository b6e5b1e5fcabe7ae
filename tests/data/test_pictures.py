"""Every kind of picture comes out upright, in 8 bits, with the wanted channels and size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hvq.data.pictures import convert, decode, fit, to_picture, to_tensor


def random_picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def smooth_picture(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 / height, columns * 255 / width, 127 + 100 * np.sin(rows / height * 9)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tensor_and_back(mode: str) -> None:
    picture = random_picture(5, 7, mode)
    image = to_tensor(picture)
    assert image.shape == (1 if mode == "L" else 3, 5, 7)
    assert image[0, 4, 6] == np.array(picture).reshape(5, 7, -1)[4, 6, 0]
    assert np.array_equal(np.array(to_picture(image)), np.array(picture))


def test_sixteen_bits_become_eight_by_range_not_by_cutting_off() -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    for picture in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        assert np.array(convert(picture, 1)).tolist() == [[0, 1, 128, 255]]


def test_what_is_transparent_lies_on_white() -> None:
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert convert(half, 3).getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.info["transparency"] = 1
    assert convert(palette, 3).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.new("LA", (1, 1), (0, 0))
    assert convert(grey, 1).getpixel((0, 0)) == 255


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "L", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_keeps_its_colors(mode: str, channels: int) -> None:
    plain = Image.new("RGB", (3, 2), (255, 255, 255))
    pixels = np.array(convert(plain.convert(mode), channels))
    assert pixels.reshape(2, 3, -1).shape[-1] == channels
    assert pixels.min() >= 254


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        convert(Image.new("F", (2, 2)), 1)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 97), st.integers(1, 97)),
    size=st.tuples(st.integers(1, 53), st.integers(1, 53)),
    position=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_picture_fits_any_size(
    shape: tuple[int, int], size: tuple[int, int], position: tuple[float, float]
) -> None:
    assert fit(random_picture(*shape), size, position).size == (size[1], size[0])


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1))
def test_a_crop_without_resizing_copies_pixels(share: float) -> None:
    wide, tall = random_picture(7, 31), random_picture(31, 7)
    windows = np.lib.stride_tricks.sliding_window_view(np.array(wide), 7, axis=1).transpose(1, 0, 3, 2)
    assert (np.array(fit(wide, (7, 7), (0.5, share))) == windows).all((1, 2, 3)).any()
    assert np.array(fit(tall, (7, 7), (share, 0.5))).shape == (7, 7, 3)
    assert (np.array(fit(tall, (7, 7), (share, 0.5)))[0] == np.array(tall)).all((1, 2)).any()


def test_the_center_is_the_middle_and_the_ends_are_reached() -> None:
    columns = Image.fromarray(np.tile(np.arange(31, dtype=np.uint8), (7, 1)))
    left_edges = [np.array(fit(columns, (7, 7), (0.0, share)))[0, 0] for share in (0.0, 0.5, 1.0)]
    assert left_edges == [0, 12, 24]


def test_a_fitted_picture_covers_the_shorter_side() -> None:
    # Left half black, right half white, twice as wide as high: the central square shows both halves equally.
    picture = Image.new("L", (64, 32))
    picture.paste(255, (32, 0, 64, 32))
    small = np.array(fit(picture, (16, 16)))
    assert small[:, :6].max() <= 2
    assert small[:, 10:].min() >= 253


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path: Path, orientation: int) -> None:
    picture = random_picture(5, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    height, width = (5, 7) if orientation <= 4 else (7, 5)
    pixels = np.array(picture)
    rotations = {1: 0, 3: 2, 6: -1, 8: 1, 2: 0, 4: 2, 5: -1, 7: 1}
    expected = np.rot90(pixels, rotations[orientation])
    if orientation in (2, 4, 5, 7):
        expected = expected[:, ::-1]
    image = decode(tmp_path / "turned.png", size=(height, width), channels=3)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_read_reduced_and_look_the_same(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "large.jpg"
    smooth_picture(607, 1409).save(path, quality=95, exif=exif)
    full = fit(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), (31, 37))
    difference = decode(path, size=(31, 37), channels=3).int() - to_tensor(full).int()
    assert difference.abs().max() <= 3


def test_bytes_files_and_paths_decode_alike(tmp_path: Path) -> None:
    random_picture(5, 7).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    images = [decode(file, size=(5, 7), channels=3) for file in (data, io.BytesIO(data), tmp_path / "a.png")]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
