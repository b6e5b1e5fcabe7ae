"""A folder of images: classes, held-out files, formats, and files that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from hvq.data import FolderImages, ImageSource, folder_sources
from hvq.errors import DataError


def save(path: Path, shade: int = 0, height: int = 13, width: int = 17) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def names(source: ImageSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


@pytest.fixture
def classed(tmp_path: Path) -> Path:
    for index in range(23):
        save(tmp_path / "cat" / f"{index}.png", index)
        save(tmp_path / "dog" / "deeper" / f"{index}.jpg", index)
    return tmp_path


def test_subfolders_are_classes_at_any_depth(classed: Path) -> None:
    sources = folder_sources(classed, size=(7, 5), validation_share=0.3)
    assert sources.train.classes == sources.validation.classes == ("cat", "dog")
    for source in (sources.train, sources.validation):
        assert [source.classes[source.label(i)] for i in range(len(source))] == [
            name.split("/")[0] for name in names(source)
        ]
    assert sorted(names(sources.train) + names(sources.validation)) == sorted(
        path.relative_to(classed).as_posix() for path in classed.rglob("*.*g")
    )
    assert sources.train.fetch(np.arange(3)).images.shape == (3, 3, 7, 5)


def test_an_image_beside_the_subfolders_means_no_classes(classed: Path) -> None:
    save(classed / "loose.png")
    source = folder_sources(classed, size=(7, 5)).train
    assert source.classes == ()
    assert source.label(0) == -1


def test_subfolders_are_classes_only_where_that_is_wanted(classed: Path) -> None:
    source = folder_sources(classed, labelled=False).train
    assert source.classes == ()
    assert source.label(0) == -1
    assert names(source) == names(folder_sources(classed).train)


def test_a_limit_keeps_some_images_of_each_split_from_all_over_the_folder(classed: Path) -> None:
    everything = folder_sources(classed, validation_share=0.3)
    limited = folder_sources(classed, validation_share=0.3, limit=7)
    for all_images, some in ((everything.train, limited.train), (everything.validation, limited.validation)):
        assert len(some) == 7
        assert set(names(some)) < set(names(all_images))
        assert some.classes == ("cat", "dog")
        assert {some.label(i) for i in range(7)} == {0, 1}
    assert len(folder_sources(classed, limit=1_009).train) == len(folder_sources(classed).train)


def test_held_out_files_do_not_depend_on_other_files(classed: Path) -> None:
    before = set(names(folder_sources(classed, validation_share=0.3).validation))
    assert 0.1 * 46 < len(before) < 0.5 * 46
    for index in range(19):
        save(classed / "cat" / f"new-{index}.png", index)
    (classed / "emu").mkdir()
    save(classed / "emu" / "a.png")
    after = set(names(folder_sources(classed, validation_share=0.3, seed=7).validation))
    assert {name for name in after if "new" not in name and "emu" not in name} == before


def test_at_least_one_file_is_held_out_and_one_trained_on(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match="single image"):
        folder_sources(tmp_path)
    save(tmp_path / "b.png")
    sources = folder_sources(tmp_path, validation_share=0.0)
    assert (len(sources.train), len(sources.validation)) == (1, 1)
    with pytest.raises(DataError, match="validation_share"):
        folder_sources(tmp_path, validation_share=0.999999)


@pytest.mark.parametrize("held_out", ["validation", "val"])
@pytest.mark.parametrize("train", ["train/", ""])
def test_a_validation_folder_is_held_out_whole(tmp_path: Path, held_out: str, train: str) -> None:
    for index in range(3):
        save(tmp_path / f"{train}cat/{index}.png")
        save(tmp_path / f"{train}dog/{index}.png")
    save(tmp_path / held_out / "dog/x.png")
    sources = folder_sources(tmp_path, size=(5, 5))
    assert names(sources.validation) == ["dog/x.png"]
    assert sources.validation.label(0) == 1
    assert sources.validation.classes == sources.train.classes == ("cat", "dog")
    assert len(sources.train) == 6
    assert sources.validation.image(0).shape == (3, 5, 5)


@pytest.mark.parametrize("stranger", ["validation/emu/x.png", "validation/x.png"])
def test_validation_must_have_the_classes_of_training(tmp_path: Path, stranger: str) -> None:
    save(tmp_path / "train/cat/a.png")
    save(tmp_path / stranger)
    with pytest.raises(DataError, match=r"same classes .*\(cat\); found (emu|none)"):
        folder_sources(tmp_path)


def test_unreadable_files_are_skipped_and_named(tmp_path: Path) -> None:
    whole = [
        save(tmp_path / f"whole-{index}.{kind}") for index, kind in enumerate(["png", "jpg", "webp", "gif", "bmp"])
    ]
    for path in whole:
        data = path.read_bytes()
        (tmp_path / f"cut.{path.suffix[1:]}").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "notes.txt").write_text("not an image, and no image's name either")
    (tmp_path / "._whole.jpg").write_text("what another system leaves behind")
    sources = folder_sources(tmp_path, size=(5, 5), validation_share=0.2)
    assert sorted(names(sources.train) + names(sources.validation)) == [path.name for path in whole]
    assert set(sources.train.skipped) == {
        *("cut.png", "cut.jpg", "cut.webp", "cut.gif", "cut.bmp"),
        *("empty.jpg", "text.png", "float.tiff"),
    }
    sources.train.fetch(np.arange(len(sources.train)))


def test_a_sound_jpeg_with_bytes_after_its_end_is_kept(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        path = save(tmp_path / name)
        path.write_bytes(path.read_bytes() + bytes(100))
    sources = folder_sources(tmp_path)
    assert (len(sources.train), sources.train.skipped) == (1, ())


def test_damage_that_shows_only_when_decoding_names_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", height=31, width=37)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    source = FolderImages(tmp_path, ["a.png"], size=(5, 5))
    with pytest.raises(DataError, match=r"a\.png cannot be read .* remove or replace"):
        source.image(0)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        folder_sources(tmp_path / "missing")
    with pytest.raises(DataError, match=r"found none$"):
        folder_sources(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match="found none, and 1 that cannot be read"):
        folder_sources(tmp_path)
    save(tmp_path / "a.jpg")
    (tmp_path / "validation").mkdir()
    with pytest.raises(DataError, match="validation must hold images"):
        folder_sources(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png")
    save(tmp_path / "root" / "cat" / "b.png")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "loop").symlink_to(tmp_path / "root")
    sources = folder_sources(tmp_path / "root")
    assert sorted(names(sources.train) + names(sources.validation)) == ["cat/b.png", "dog/a.png"]


def test_random_crops_move_with_the_epoch_and_stay_central_without(tmp_path: Path) -> None:
    save(tmp_path / "a.png", height=7, width=101)
    save(tmp_path / "b.png", height=7, width=101)
    random = folder_sources(tmp_path, size=(7, 7), crop="random", seed=1).train
    center = folder_sources(tmp_path, size=(7, 7)).train
    crops = torch.stack([random.image(0, epoch) for epoch in range(11)])
    assert len(crops.flatten(1).unique(dim=0)) > 5
    assert torch.equal(random.image(0), center.image(0))
    assert torch.equal(center.image(0), center.image(0, epoch=3))
    together = random.fetch(np.zeros(11, np.int64), np.arange(11)).images
    assert torch.equal(together, crops)


def test_only_training_images_are_cropped_at_random(tmp_path: Path) -> None:
    for index in range(2):
        save(tmp_path / f"{index}.png", height=7, width=101)
    held_out = folder_sources(tmp_path, size=(7, 7), crop="random").validation
    assert torch.equal(held_out.image(0, epoch=0), held_out.image(0, epoch=1))


def test_a_folder_is_told_by_names_and_sizes_of_its_files_wherever_it_lies(classed: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path, crop: Literal["center", "random"] = "center") -> str:
        return folder_sources(root, crop=crop).train.fingerprint()

    first = fingerprint(classed)
    shutil.copytree(classed, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == first
    assert fingerprint(classed, crop="random") != first
    train = folder_sources(classed).train
    (classed / train.name(0)).rename((classed / train.name(0)).with_stem("renamed"))
    assert fingerprint(classed) != first
    train = folder_sources(tmp_path / "copy").train
    save(tmp_path / "copy" / train.name(1), height=29)
    assert fingerprint(tmp_path / "copy") != first
    (tmp_path / "copy" / train.name(1)).unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\); put it back"):
        train.fingerprint()
