"""What `datasets` reads: forms on this machine, columns, splits and classes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvq.data import HubColumns, HubImages, Sources, StreamedImages, Streaming, hub, hub_sources, ordered_batches
from hvq.errors import DataError
from tests.data.kinds import encoded, names_of, same, save_folder, save_parquet, write_tar

datasets: Any = pytest.importorskip("datasets")
SIZE = (7, 5)
STREAMED = Streaming(enabled=True, lanes=2, shuffle_buffer=6)
pytestmark = pytest.mark.usefixtures("hub_cache")


def rows(count: int, **columns: Any) -> Any:
    """A data set of so many images, beside other columns."""
    images = [{"bytes": encoded(index), "path": None} for index in range(count)]
    kinds = {
        name: datasets.Value("string" if isinstance(values[0], str) else "int64") for name, values in columns.items()
    }
    features = datasets.Features({"image": datasets.Image(), **kinds})
    return datasets.Dataset.from_dict({"image": images, **columns}, features=features)


def saved(root: Path, data: Any) -> str:
    data.save_to_disk(str(root / "saved"))
    return str(root / "saved")


def images_of(sources: Sources) -> list[bytes]:
    return sorted(
        image.numpy().tobytes()
        for source in (sources.train, sources.validation)
        for image in source.fetch(np.arange(len(source))).images
    )


def test_every_form_on_this_machine_holds_the_same_images(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "images", 13)
    forms = {
        "files": save_parquet(folder, "a-{}.parquet", shards=2),
        "saved": saved(tmp_path, datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")),
        "folder": str(folder),
    }
    arrow = datasets.load_from_disk(forms["saved"]).cache_files[0]["filename"]
    found = {form: images_of(hub_sources(name, size=SIZE)) for form, name in forms.items() if form != "folder"}
    found["arrow"] = images_of(hub_sources(arrow, size=SIZE))
    for path in folder.glob("*.parquet"):
        path.unlink()
    found["folder"] = images_of(hub_sources(forms["folder"], size=SIZE))
    assert len(found["files"]) == 13
    assert all(images == found["files"] for images in found.values())


@pytest.mark.parametrize("streaming", [None, STREAMED])
def test_splits_are_taken_by_name_or_held_out_by_hash(tmp_path: Path, streaming: Streaming | None) -> None:
    folder = save_folder(tmp_path / "images", 17)
    save_parquet(folder, "train-{}.parquet", shards=2)
    hashed = hub_sources(f"{folder}/train-*.parquet", size=SIZE, validation_share=0.3, streaming=streaming)
    assert len(hashed.train) + len(hashed.validation) == 17
    assert not set(names_of(hashed.train)) & set(names_of(hashed.validation))
    assert type(hashed.train) is (StreamedImages if streaming else HubImages)
    parts = datasets.DatasetDict({name: rows(count) for name, count in (("train", 7), ("val", 3), ("other", 2))})
    name = saved(tmp_path, parts)
    given = hub_sources(name, size=SIZE, streaming=streaming)
    assert (len(given.train), len(given.validation)) == (7, 3)
    other = hub_sources(name, size=SIZE, train="val", validation="other", streaming=streaming)
    assert (len(other.train), len(other.validation)) == (3, 2)
    with pytest.raises(DataError, match=r"has no split 'test'; set data.train and .* to one of train, val, other"):
        hub_sources(name, size=SIZE, validation="test", streaming=streaming)


@pytest.mark.parametrize("streaming", [None, STREAMED])
def test_classes_come_from_the_column_of_labels(tmp_path: Path, streaming: Streaming | None) -> None:
    name = saved(tmp_path, rows(5, kind=["dog", "cat", "dog", "dog", "cat"], number=[3, 1, -1, 0, 3]))

    def labels(column: str | None) -> tuple[tuple[str, ...], list[int]]:
        sources = hub_sources(
            name, size=SIZE, columns=HubColumns(label=column), streaming=streaming, validation_share=0
        )
        by_name = {
            source.name(index): source.label(index)
            for source in (sources.train, sources.validation)
            for index in range(len(source))
        }
        return sources.train.classes, [by_name[f"train/{row}"] for row in range(5)]

    assert labels(None) == ((), [-1] * 5)
    assert labels("kind") == (("cat", "dog"), [1, 0, 1, 1, 0])
    assert labels("number") == (("0", "1", "2", "3"), [3, 1, -1, 0, 3])
    with pytest.raises(DataError, match=r"no column 'size'; set data.columns.label to one of image, kind, number"):
        labels("size")


def test_declared_classes_are_taken_with_what_is_unknown(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    images = [{"bytes": encoded(index), "path": None} for index in range(5)]
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1, -1, None, 1]}, features=features)
    for streaming in (None, STREAMED):
        sources = hub_sources(saved(tmp_path, data), size=SIZE, streaming=streaming, validation_share=0)
        assert sources.train.classes == ("b", "a")
        by_name = {
            source.name(index): source.label(index)
            for source in (sources.train, sources.validation)
            for index in range(len(source))
        }
        assert [by_name[f"train/{row}"] for row in range(5)] == [0, 1, -1, -1, 1]


def test_the_column_of_images_is_found_or_asked_for(tmp_path: Path) -> None:
    raw = [encoded(index) for index in range(4)]
    data = datasets.Dataset.from_dict({"picture": raw, "thumb": raw})
    name = saved(tmp_path / "a", data)
    with pytest.raises(DataError, match=r"no column that is clearly .*; set data.columns.image to one of pi"):
        hub_sources(name)
    sources = hub_sources(name, size=SIZE, columns=HubColumns(image="picture"))
    named = hub_sources(saved(tmp_path / "b", data.rename_column("picture", "img")), size=SIZE)
    assert images_of(sources) == images_of(named) == images_of(hub_sources(saved(tmp_path / "c", rows(4)), size=SIZE))


def test_streamed_rows_are_those_of_the_whole_in_the_same_order(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "images", 29)
    name = save_parquet(folder, shards=3)
    whole, stream = (hub_sources(name, size=SIZE, streaming=streaming) for streaming in (None, STREAMED))
    for one, other in ((whole.train, stream.train), (whole.validation, stream.validation)):
        assert names_of(one) == names_of(other)
        assert one.classes == other.classes == ("cat", "dog")
        for first, second in zip(*(ordered_batches(s, chunk_size=7, epoch=1) for s in (one, other)), strict=True):
            assert same(first, second)


def test_a_stream_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = save_parquet(save_folder(tmp_path / "images", 11), shards=2)
    counted: list[int] = []
    original = hub._Split._counted
    monkeypatch.setattr(hub._Split, "_counted", lambda split: (counted.append(1), original(split))[1])
    first, again = (hub_sources(name, size=SIZE, streaming=STREAMED) for _ in range(2))
    assert len(counted) == 1
    assert [first.train.label(i) for i in range(5)] == [again.train.label(i) for i in range(5)]
    path = next((tmp_path / "images").glob("*.parquet"))
    rows(3).add_column("label", [0, 0, 0]).to_parquet(path)
    hub_sources(name, size=SIZE, streaming=STREAMED)
    assert len(counted) == 2


@pytest.mark.parametrize("form", ["files", "folder", "saved"])
@pytest.mark.parametrize("streaming", [None, STREAMED])
def test_other_images_under_the_same_numbers_are_told(tmp_path: Path, form: str, streaming: Streaming | None) -> None:
    def made(root: str, images: int) -> str:
        """Seven rows each, from seeds of their own."""
        folder = tmp_path / root
        if form == "saved":
            data = rows(7).select([(row + images) % 7 for row in range(7)])
            return saved(folder, data)
        folder.mkdir()
        files = [{"bytes": encoded(images + row), "path": None} for row in range(7)]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": files}, features=features).to_parquet(folder / "train-0.parquet")
        return str(folder / "train-*.parquet" if form == "files" else folder)

    def told(name: str) -> list[str]:
        source = hub_sources(name, size=SIZE, streaming=streaming).train
        return [source.fingerprint(contents=contents) for contents in (True, False)]

    first, other = made("a", 0), made("b", 3)
    assert told(first) == told(first)
    assert not set(told(first)) & set(told(other))
    if form != "saved":
        # Wherever they lie.
        (tmp_path / "a").rename(tmp_path / "c")
        before = told(other)
        (tmp_path / "b").rename(tmp_path / "a")
        assert told(first) == before


def test_one_split_is_not_trained_on_and_held_out(tmp_path: Path) -> None:
    name = saved(tmp_path, datasets.DatasetDict({"train": rows(5), "test": rows(3)}))
    with pytest.raises(DataError, match=r"must be two splits; both are 'train': set data.validation to null"):
        hub_sources(name, size=SIZE, validation="train")
    with pytest.raises(DataError, match=r"must be two splits; both are 'test'"):
        hub_sources(name, size=SIZE, train="test", validation="test")


def test_several_columns_of_classes_are_asked_about(tmp_path: Path) -> None:
    kinds = {name: datasets.ClassLabel(names=["a", "b"]) for name in ("coarse", "fine")}
    images = [{"bytes": encoded(index), "path": None} for index in range(3)]
    data = datasets.Dataset.from_dict(
        {"image": images, "coarse": [0, 0, 1], "fine": [1, 0, 1]},
        features=datasets.Features({"image": datasets.Image(), **kinds}),
    )
    name = saved(tmp_path, data)
    with pytest.raises(DataError, match=r"has 2 columns of classes; set data.columns.label to one of coarse, fine"):
        hub_sources(name, size=SIZE)
    assert hub_sources(name, size=SIZE, columns=HubColumns(label="fine")).train.classes == ("a", "b")


def test_a_folder_of_images_elsewhere_is_not_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_folder(tmp_path / "images", 7)
    original = datasets.load_dataset_builder

    def elsewhere(*arguments: Any, **options: Any) -> Any:
        builder = original(*arguments, **options)
        builder.config.data_files = {"train": [f"hf://datasets/a/b/{path.name}" for path in folder.rglob("*.png")]}
        return builder

    assert len(hub_sources(str(folder), size=SIZE, streaming=STREAMED).train) > 0
    monkeypatch.setattr(datasets, "load_dataset_builder", elsewhere)
    with pytest.raises(DataError, match=r"images is a folder of images on another machine.*streaming.enabled to null"):
        hub_sources(str(folder), size=SIZE, streaming=STREAMED)
    assert len(hub_sources(str(folder), size=SIZE).train) > 0


def test_other_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "a.tar", [("0.png", encoded(0)), ("1.png", encoded(1))])
    with pytest.raises(DataError, match=r"is of kind webdataset: take `kind: shards`"):
        hub_sources(str(tmp_path / "tars"))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("image\n1\n")
    with pytest.raises(DataError, match=r"is of kind csv: save it as one of them"):
        hub_sources(str(tmp_path / "tables"))
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError, match=r"data set .*script cannot be loaded"):
        hub_sources(str(tmp_path / "script"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.parquet", "no file nowhere.parquet"),
        ("nowhere-*.parquet", "leads to none"),
        ("./nowhere", "no folder ./nowhere"),
        ("no-such/data-set", "data set no-such/data-set cannot be loaded"),
    ],
)
def test_what_is_not_there_is_named(name: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as raised:
        hub_sources(name)
    assert len(str(raised.value).splitlines()) == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    name = save_parquet(save_folder(tmp_path / "images", 17), "a-{}.parquet", shards=3)
    # The last first: it is not looked into before those that are sound have been.
    for path in sorted((tmp_path / "images").glob("*.parquet"), reverse=True):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        for streaming in (None, STREAMED):
            with pytest.raises(DataError, match=r"a-\*\.parquet cannot be loaded .*all of them whole") as raised:
                hub_sources(name, size=SIZE, streaming=streaming)
            assert len(str(raised.value).splitlines()) == 1


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "hvq\[hub\]"'):
        hub_sources("anything")
