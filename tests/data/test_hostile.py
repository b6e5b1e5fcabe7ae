"""Images that are damaged, absurd or odd are read right, or left out by name; what changes under a run is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hvq.data import FolderImages, ImageSource, Sources, TrainingStream, folder_sources, hub_sources, shard_sources
from hvq.errors import DataError
from tests.data.hostile import READABLE, TURNED, UNREADABLE
from tests.data.kinds import encoded, names_of, write_tar

SIZE = (4, 4)


def _write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def _all_files() -> dict[str, bytes]:
    files = {name: make() for name, make in UNREADABLE.items()}
    return files | {name: make() for name, (make, _) in READABLE.items()} | {"turned.png": TURNED()}


def _images(sources: Sources) -> dict[str, torch.Tensor]:
    """All images of both splits, by name."""
    both = (sources.train, sources.validation)
    return {
        name: image
        for source in both
        for name, image in zip(names_of(source), source.fetch(np.arange(len(source))).images, strict=True)
    }


def _assert_right(images: dict[str, torch.Tensor]) -> None:
    assert set(images) == {*READABLE, "turned.png"}
    for name, (_, shades) in READABLE.items():
        # JPEG gives or takes one.
        error = (images[name].int() - torch.tensor(shades).view(3, 1, 1)).abs().max()
        assert error <= (name.lower().endswith("jpg")), name
    # What is stored above, dark, is seen on the right.
    assert (images["turned.png"][:, :, 0] > 150).all()
    assert (images["turned.png"][:, :, -1] < 50).all()


def test_a_folder_of_hostile_files_is_read_right_or_left_out_by_name(tmp_path: Path) -> None:
    _write(tmp_path, _all_files())
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to(os.devnull)
    sources = folder_sources(tmp_path, size=SIZE)
    odd = {"pipe.png", "dangling.png", "circle.png", "device.png"}
    assert set(sources.train.skipped) == {*UNREADABLE, *odd}
    _assert_right(_images(sources))


def test_shards_of_hostile_members_are_read_right_or_leave_them_out_by_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", list(_all_files().items()))
    # As webdataset has it, members of one name are one sample: so these get names of their own.
    members = [(f"{number:02d}/{name}", content) for number, (name, content) in enumerate(_all_files().items())]
    write_tar(path, members)
    sources = shard_sources(str(path), size=SIZE)
    assert {name.rpartition("/")[2] for name in sources.train.skipped} == set(UNREADABLE)
    assert all(name.startswith(f"{path}: ") for name in sources.train.skipped)
    _assert_right({name.partition("/")[2]: image for name, image in _images(sources).items()})


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_sentence_where_it_is_fetched(tmp_path: Path, name: str) -> None:
    _write(tmp_path, {name: UNREADABLE[name]()})
    source = FolderImages(tmp_path, [name], size=SIZE)
    if name == "zipped.png":
        # A picture all the same, for Pillow stops unpacking in time.
        with pytest.raises(DataError, match=r"zipped\.png cannot be read \(.*too large"):
            source.image(0)
        return
    with pytest.raises(
        DataError, match=rf"^image .*{name} cannot be read \(.*\); remove or replace the file"
    ) as raised:
        source.image(0)
    assert len(str(raised.value).splitlines()) == 1


def _garbage(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def _other_content(path: Path) -> None:
    """Another sound picture of the same number of bytes, a while later."""
    before = path.stat()
    content = encoded(77, "BMP")
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (Path.unlink, r"cannot be read \(.*No such file.*\); remove or replace the file and start again"),
    "garbage": (_garbage, "is not the file that was there when the run began.*; put the old one back, or start again"),
    "content": (_other_content, "is not the file that was there when the run began"),
    "shorter": (lambda path: os.truncate(path, 50), "is not the file that was there when the run began"),
    "pipe": (_pipe, "is not a regular file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    _write(tmp_path / "images", {f"{index}.bmp": encoded(index, "BMP") for index in range(7)})
    for path in (tmp_path / "images").iterdir():
        os.utime(path, ns=(10**18, 10**18))
    return tmp_path / "images"


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changes_under_a_run_is_named_with_a_way_out(pictures: Path, change: str) -> None:
    source = folder_sources(pictures, size=SIZE).train
    path = pictures / source.name(3)
    act, sentence = CHANGES[change]
    act(path)
    with pytest.raises(DataError, match=rf"image .*{path.name}.*{sentence}"):
        source.fetch(np.arange(len(source)))
    assert source.fetch(np.array([2])).images.shape == (1, 3, *SIZE)


def test_it_is_the_same_sentence_from_a_worker(pictures: Path) -> None:
    source = folder_sources(pictures, size=SIZE).train
    stream = TrainingStream(source, batch_size=len(source), workers=1)
    path = pictures / source.name(3)
    path.unlink()
    with pytest.raises(DataError, match=f"^image .*{path.name} cannot be read"):
        list(islice(stream, 9))


@pytest.mark.parametrize("change", ["removed", "garbage", "pipe"])
def test_a_shard_that_changes_under_a_run_is_named(tmp_path: Path, change: str) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{index}.png", encoded(index)) for index in range(7)])
    os.utime(path, ns=(10**18, 10**18))
    source = shard_sources(str(path), size=SIZE).train
    CHANGES[change][0](path)
    with pytest.raises(DataError, match=r"a\.tar"):
        source.image(3)


BLOCK = 512
# Of a header, and two blocks of content.
MEMBER = 3 * BLOCK
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "empty"),
    "text": (lambda data: b"no archive" * 100, "invalid header|truncated|could not be opened"),
    "cut in a member": (lambda data: data[: MEMBER + BLOCK + 100], "unexpected end of data"),
    "cut in a header": (lambda data: data[: 2 * MEMBER + 300], "truncated header"),
    "cut between members": (lambda data: data[: 2 * MEMBER], "it has no end"),
    # `tarfile` itself takes it for the end of the archive, and so would lose the rest without a word.
    "a header overwritten": (
        lambda data: data[: 2 * MEMBER] + b"\xff" * BLOCK + data[2 * MEMBER + BLOCK :],
        f"damaged at byte {2 * MEMBER}",
    ),
    "a header of zeros": (
        lambda data: data[: 2 * MEMBER] + bytes(BLOCK) + data[2 * MEMBER + BLOCK :],
        f"zeros at byte {2 * MEMBER} stand where its end would be, and more follows",
    ),
    "two joined": (lambda data: data + data, "and more follows: .* `tar --concatenate`"),
    "space set aside": (
        lambda data: data[: 2 * MEMBER] + bytes(2**21),
        f"from byte {2 * MEMBER} on it is empty: it is damaged, or not yet loaded",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.x"])
def test_a_damaged_shard_is_refused_by_name(tmp_path: Path, damage: str, name: str) -> None:
    """One of another suffix may be compressed, and is read as a stream."""
    change, reason = DAMAGE[damage]
    assert BLOCK < len(encoded(0)) <= 2 * BLOCK
    sound = write_tar(tmp_path / "sound.tar", [(f"{index}.png", encoded(0)) for index in range(5)])
    (tmp_path / name).write_bytes(change(sound.read_bytes()))
    with pytest.raises(DataError, match=rf"shard .*{name} cannot be read \(.*({reason})") as raised:
        shard_sources(str(tmp_path / name), size=SIZE)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("zeros", [BLOCK, 2 * BLOCK, 2**20 - BLOCK])
def test_an_archive_may_end_in_a_record_of_any_size(tmp_path: Path, zeros: int) -> None:
    sound = write_tar(tmp_path / "a.tar", [(f"{index}.png", encoded(0)) for index in range(5)])
    sound.write_bytes(sound.read_bytes()[: 5 * MEMBER] + bytes(zeros))
    sources = shard_sources(str(sound), size=SIZE)
    assert len(sources.train) + len(sources.validation) == 5


@pytest.mark.usefixtures("hub_cache")
def test_a_bad_row_is_named(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    contents = [encoded(0), UNREADABLE["claiming.png"](), None, encoded(1), b""]
    rows = [None if content is None else {"bytes": content, "path": None} for content in contents]
    datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(tmp_path / "saved")
    sources = hub_sources(str(tmp_path / "saved"), size=SIZE, validation_share=0.0)

    def source_of(row: int) -> tuple[ImageSource, int]:
        both = [(source, names_of(source)) for source in (sources.train, sources.validation)]
        return next((source, names.index(f"train/{row}")) for source, names in both if f"train/{row}" in names)

    for row, reason in ((1, "pixels"), (2, "nothing"), (4, "cannot identify")):
        source, index = source_of(row)
        with pytest.raises(DataError, match=rf"image {row} of .*split train of data set .*saved .*{reason}"):
            source.image(index)
    source, index = source_of(3)
    assert source.image(index).shape == (3, *SIZE)


def test_members_that_could_hold_a_pickle_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
    evil = b"cos\nsystem\n(S'exit 1'\ntR."
    members = [(f"{index}.{kind}", evil) for index in range(3) for kind in ("pyd", "pkl", "pickle", "pth", "npy")]
    members += [(f"{index}.png", encoded(index)) for index in range(3)]
    members.sort()
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        path = write_tar(tmp_path / name, members, mode)
        sources = shard_sources(str(path), size=SIZE)
        assert sorted(_images(sources)) == ["0.png", "1.png", "2.png"]
