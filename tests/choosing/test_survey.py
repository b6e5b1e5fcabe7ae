"""What is found in folders of pictures of all sorts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvq.choosing import survey_folder
from hvq.choosing.survey import LEAST_IMAGES
from hvq.errors import DataError

NUMBER = 23


def _noise(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """A picture in which no neighbours are equal, as in photographs."""
    generator = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.merge(
        mode, [Image.fromarray(generator.integers(0, 256, size[::-1], dtype=np.uint8)) for _ in range(channels)]
    )


def _drawing(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    picture = Image.new(mode, size, "white")
    picture.paste("red" if mode == "RGB" else 0, (0, 0, size[0] // 3, 1 + seed % size[1]))
    return picture


def _folder(root: Path, *, number: int = NUMBER, below: str = "", draw: Any = _noise, **picture: Any) -> Path:
    (root / below).mkdir(parents=True, exist_ok=True)
    mode, size = picture.get("mode", "RGB"), picture.get("size", (37, 29))
    for i in range(number):
        width, height = size(i) if callable(size) else size
        draw(mode, (width, height), i).save(root / below / f"{i:03d}.png")
    return root


def test_photographs_in_a_plain_folder(tmp_path: Path) -> None:
    survey = survey_folder(_folder(tmp_path))
    assert (survey.images, survey.held_out, survey.classes, survey.unreadable) == (NUMBER, 0, 0, 0)
    assert (survey.usual_side, survey.smallest_side, survey.largest_side) == (29, 29, 37)
    assert survey.colour
    assert survey.photographs
    assert not survey.square
    assert not survey.transparent


@pytest.mark.parametrize(
    ("mode", "colour", "transparent"), [("L", False, False), ("LA", False, True), ("RGBA", True, True)]
)
def test_channels_of_the_files(tmp_path: Path, mode: str, colour: bool, transparent: bool) -> None:
    survey = survey_folder(_folder(tmp_path, mode=mode, size=(19, 19)))
    assert (survey.colour, survey.transparent, survey.square) == (colour, transparent, True)
    assert survey.channels == (3 if colour else 1)


def test_grey_pictures_in_colour_files_are_grey(tmp_path: Path) -> None:
    def grey(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
        return _noise("L", size, seed).convert(mode)

    assert survey_folder(_folder(tmp_path, draw=grey)).channels == 1


def test_drawings_are_no_photographs(tmp_path: Path) -> None:
    survey = survey_folder(_folder(tmp_path, draw=_drawing))
    assert not survey.photographs
    assert survey.colour


def test_three_quarters_are_as_large_as_the_usual_side(tmp_path: Path) -> None:
    sides = [11 + i for i in range(NUMBER)]
    _folder(tmp_path, below="train", size=lambda i: (sides[i], 101))
    _folder(tmp_path, below="validation", number=1)
    survey = survey_folder(tmp_path)
    assert np.mean([side >= survey.usual_side for side in sides]) >= 0.75
    assert np.mean([side > survey.usual_side for side in sides]) < 0.75
    assert (survey.smallest_side, survey.largest_side) == (11, 101)


def test_classes_a_folder_of_held_out_images_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, number in (("cat", 13), ("dog", 17)):
        _folder(tmp_path, below=f"train/{name}", number=number)
        _folder(tmp_path, below=f"validation/{name}", number=3)
    (tmp_path / "train" / "cat" / "broken.jpg").write_bytes(b"no picture")
    survey = survey_folder(tmp_path)
    assert (survey.images, survey.held_out, survey.classes, survey.unreadable) == (30, 6, 2, 1)


def test_too_few_images_are_refused_with_both_numbers(tmp_path: Path) -> None:
    _folder(tmp_path, number=LEAST_IMAGES - 1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=f"must hold {LEAST_IMAGES} images .* found {LEAST_IMAGES - 1}, and 1 that cannot"
    ):
        survey_folder(tmp_path)


@pytest.mark.parametrize("number", [0, 1])
def test_no_images_are_refused(tmp_path: Path, number: int) -> None:
    with pytest.raises(DataError, match=r"found none|single image"):
        survey_folder(_folder(tmp_path, number=number))


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        survey_folder(tmp_path / "nowhere")
