"""Array files of every form give the images that were put in, and damaged ones one clear sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from hvq.data import Augmentation, ImageSource, array_sources
from hvq.errors import DataError

Arrays = dict[str, NDArray[Any]]
ROWS = 7


def images(channels: int = 3, height: int = 5, width: int = 11) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (ROWS, channels, height, width), dtype=np.uint8)


def encoded(kind: str = "PNG", prefix: int = 0) -> Arrays:
    files = []
    for image in images():
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, kind)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *(len(data) - prefix for data in files)])
    arrays = {"jpeg_bytes": np.frombuffer(b"".join(data[prefix:] for data in files), np.uint8), "offsets": offsets}
    return arrays | ({"jpeg_prefix": np.frombuffer(files[0][:prefix], np.uint8)} if prefix else {})


def write(path: Path, arrays: Arrays, metadata: dict[str, str] | None = None) -> Path:
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata)
    return path


def source_of(path: Path, **options: Any) -> ImageSource:
    return array_sources(path, path, **{"size": (5, 11)} | options).train


def all_images(source: ImageSource) -> NDArray[np.uint8]:
    return source.fetch(np.arange(len(source))).images.numpy()


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
@pytest.mark.parametrize("form", ["NCHW", "NHWC"])
def test_images_of_three_channels_in_either_order(tmp_path: Path, name: str, form: str) -> None:
    stored = images() if form == "NCHW" else images().transpose(0, 2, 3, 1)
    assert np.array_equal(all_images(source_of(write(tmp_path / name, {"images": stored}))), images())


@pytest.mark.parametrize("shape", [(ROWS, 5, 11), (ROWS, 1, 5, 11), (ROWS, 5, 11, 1)])
def test_grey_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.npz", {"images": images(1).reshape(shape)})
    assert np.array_equal(all_images(source_of(path, channels=1)), images(1))
    assert np.array_equal(all_images(source_of(path)), images(1).repeat(3, axis=1))


def test_color_becomes_grey_as_pillow_does_it(tmp_path: Path) -> None:
    grey = all_images(source_of(write(tmp_path / "a.npz", {"images": images()}), channels=1))
    expected = Image.fromarray(images()[3].transpose(1, 2, 0)).convert("L")
    assert np.array_equal(grey[3, 0], np.array(expected))


def test_images_of_another_size_are_resized(tmp_path: Path) -> None:
    flat = np.full((ROWS, 3, 5, 11), 77, np.uint8)
    resized = all_images(source_of(write(tmp_path / "a.npz", {"images": flat}), size=(13, 7)))
    assert resized.shape == (ROWS, 3, 13, 7)
    assert (resized == 77).all()


@pytest.mark.parametrize("prefix", [0, 8])
def test_encoded_pictures(tmp_path: Path, prefix: int) -> None:
    source = source_of(write(tmp_path / "a.safetensors", encoded(prefix=prefix)))
    assert np.array_equal(all_images(source), images())
    assert source.name(3) == "a/3"


def test_jpeg_pictures_equal_what_pillow_decodes(tmp_path: Path) -> None:
    arrays = encoded("JPEG", prefix=23)
    start, end = arrays["offsets"][2:4]
    data = arrays["jpeg_prefix"].tobytes() + arrays["jpeg_bytes"][start:end].tobytes()
    expected = np.array(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(source_of(write(tmp_path / "a.npz", arrays)).image(2).numpy(), expected)


def test_class_names_come_from_the_metadata_or_count_over_both_splits(tmp_path: Path) -> None:
    some: Arrays = {"images": images(), "labels": np.array([0, 1, 0, 1, 0, 1, 1], np.uint8)}
    more: Arrays = {"images": images(), "labels": np.array([0, 2, 0, 1, 0, 1, 1], np.int16)}
    train, validation = write(tmp_path / "a.npz", some), write(tmp_path / "b.npz", more)
    sources = array_sources(train, validation, size=(5, 11))
    assert sources.train.classes == sources.validation.classes == ("0", "1", "2")
    assert sources.validation.fetch(np.arange(ROWS)).labels.tolist() == more["labels"].tolist()
    named = write(tmp_path / "c.safetensors", some, {"classes": json.dumps(["cat", "dog"])})
    assert source_of(named).classes == ("cat", "dog")
    other = write(tmp_path / "d.safetensors", some, {"classes": json.dumps(["dog", "cat"])})
    with pytest.raises(DataError, match="same classes"):
        array_sources(named, other)
    with pytest.raises(DataError, match=r"b\.npz: labels of 2 classes go from 0 to 1"):
        array_sources(named, validation)
    unlabelled = write(tmp_path / "e.npz", {"images": images()})
    with pytest.raises(DataError, match="both have labels, or neither"):
        array_sources(train, unlabelled)


def test_only_training_images_are_augmented(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"images": images()})
    sources = array_sources(path, path, size=(5, 11), augmentation=Augmentation(shift=2.0))
    assert not torch.equal(sources.train.image(0, epoch=0), sources.train.image(0))
    assert torch.equal(sources.validation.image(0, epoch=0), sources.validation.image(0))


BAD_ARRAYS: dict[str, tuple[Arrays, str]] = {
    "float images": ({"images": images().astype(np.float32)}, "uint8"),
    "two dimensions": ({"images": images()[0, 0]}, "uint8"),
    "two channels": ({"images": images()[:, :2]}, "1 or 3 channels"),
    "no image": ({"images": images()[:0]}, "at least one"),
    "no picture": ({"jpeg_bytes": np.zeros(3, np.uint8), "offsets": np.array([0])}, "at least one"),
    "no content": ({"labels": np.zeros(3, np.uint8)}, "it holds labels"),
    "too few labels": ({"images": images(), "labels": np.zeros(3, np.uint8)}, "7 integers"),
    "float labels": ({"images": images(), "labels": np.zeros(ROWS)}, "7 integers"),
    "negative labels": ({"images": images(), "labels": np.full(ROWS, -2)}, "labels"),
    "falling offsets": (encoded() | {"offsets": np.array([0, 9, 5])}, "must rise"),
    "offsets beyond the end": (encoded() | {"offsets": np.array([0, 10**6])}, "must rise"),
    "float offsets": (encoded() | {"offsets": np.array([0.0, 5.0])}, "integers"),
    "wide bytes": (encoded() | {"jpeg_bytes": np.zeros(5, np.int16)}, "uint8 of one dimension"),
}


@pytest.mark.parametrize("fault", BAD_ARRAYS)
@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
def test_files_of_another_form_are_refused_by_name(tmp_path: Path, name: str, fault: str) -> None:
    arrays, sentence = BAD_ARRAYS[fault]
    with pytest.raises(DataError, match=sentence) as raised:
        source_of(write(tmp_path / name, arrays))
    assert name in str(raised.value)


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
def test_missing_and_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match="no array of images"):
        source_of(path)
    data = write(path, {"images": images()}).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=f"{name} is damaged"):
        source_of(path)


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{"any": "object"}], dtype=object))
    with pytest.raises(DataError, match="plain arrays"):
        source_of(tmp_path / "a.npz")


def test_other_suffixes_and_foreign_class_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.safetensors or \.npz"):
        source_of(tmp_path / "a.pt")
    for classes in ("[1, 2]", "cat"):
        path = write(tmp_path / "a.safetensors", {"images": images()}, {"classes": classes})
        with pytest.raises(DataError, match="JSON list of names"):
            source_of(path)


def test_a_damaged_picture_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    arrays = encoded()
    damaged = arrays["jpeg_bytes"].copy()
    damaged[arrays["offsets"][4] : arrays["offsets"][5]] = 0
    source = source_of(write(tmp_path / "a.npz", arrays | {"jpeg_bytes": damaged}))
    with pytest.raises(DataError, match=r"picture 4 of .*a\.npz"):
        source.image(0)


@pytest.mark.parametrize("form", ["pixels", "pictures"])
def test_another_picture_gives_another_fingerprint(tmp_path: Path, form: str) -> None:
    arrays = {"images": images()} if form == "pixels" else encoded()
    first = source_of(write(tmp_path / "a.safetensors", arrays)).fingerprint()
    assert source_of(write(tmp_path / "a.safetensors", arrays)).fingerprint() == first
    name = "images" if form == "pixels" else "jpeg_bytes"
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[-40] ^= 1
    assert source_of(write(tmp_path / "a.safetensors", arrays)).fingerprint() != first


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros(0, np.int64), r"labels must be 7 integers, one per image; received int64 \[0\]"),
        (np.array(["cat"] * ROWS), r"labels must be 7 integers, one per image; received <U3 \[7\]"),
        (np.full(ROWS, np.nan), r"labels must be 7 integers, one per image; received float64 \[7\]"),
        (np.full(ROWS, np.iinfo(np.int64).max), r"labels of 1048576 classes .* received 9223372036854775807"),
        (np.full(ROWS, np.iinfo(np.uint64).max), r"labels of 1048576 classes .* received 18446744073709551615"),
        (np.array(1), r"labels must be 7 integers, one per image; received int64 \[\]"),
    ],
)
def test_labels_that_are_none_are_one_sentence(tmp_path: Path, labels: NDArray[Any], sentence: str) -> None:
    path = write(tmp_path / "a.npz", {"images": images(), "labels": labels})
    with pytest.raises(DataError, match=rf"^{path}: {sentence}"):
        source_of(path)


def test_files_that_numpy_reads_as_something_else(tmp_path: Path) -> None:
    tensors = {"images": torch.from_numpy(images()), "labels": torch.zeros(ROWS, dtype=torch.bfloat16)}
    save_tensors(tensors, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"`labels` of .*a.safetensors must be .* NumPy has; received torch.bfloat16"):
        source_of(tmp_path / "a.safetensors")
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, images())
    with pytest.raises(DataError, match=r"a\.npz is damaged or is not an npz file of plain arrays: .* a single array"):
        source_of(tmp_path / "a.npz")
