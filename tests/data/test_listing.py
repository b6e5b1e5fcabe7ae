"""A folder is looked through once; what was found is believed for as long as its files are what they were."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hvq.data import listing
from hvq.data.listing import list_images
from tests.data.kinds import encoded

LONG_AGO = 10**18


def _save(path: Path, content: bytes, changed: int = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(5):
        _save(tmp_path / "images" / "cat" / f"{index}.png", encoded(index))
    _save(tmp_path / "images" / "bad.png", b"no picture")
    return tmp_path / "images"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were opened to see whether they can be read."""
    names: list[str] = []
    original = listing.is_readable

    def spy(file: object) -> bool:
        names.append(Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).name)  # type: ignore[attr-defined]
        return original(file)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "is_readable", spy)
    return names


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs names of open files")


@needs_proc
def test_files_are_opened_once_and_again_when_they_change(root: Path, opened: list[str]) -> None:
    first = list_images(root)
    assert sorted(opened) == ["0.png", "1.png", "2.png", "3.png", "4.png", "bad.png"]
    opened.clear()
    again = list_images(root)
    assert opened == []
    assert (again.readable, again.skipped) == (first.readable, first.skipped)
    assert again.stamps.tolist() == first.stamps.tolist() == [[len(encoded(i)), LONG_AGO] for i in range(5)]
    # Another time; another size at the same time; a new file; one that has gone.
    _save(root / "cat" / "1.png", encoded(1), LONG_AGO + 1)
    _save(root / "cat" / "2.png", encoded(2)[:60])
    _save(root / "bad.png", encoded(9))
    _save(root / "new.png", encoded(7))
    (root / "cat" / "4.png").unlink()
    changed = list_images(root)
    assert sorted(opened) == ["1.png", "2.png", "bad.png", "new.png"]
    assert changed.readable == ("bad.png", "cat/0.png", "cat/1.png", "cat/3.png", "new.png")
    assert changed.skipped == ("cat/2.png",)


@needs_proc
def test_what_was_written_just_now_is_looked_at_again(root: Path, opened: list[str]) -> None:
    (root / "cat" / "0.png").write_bytes(encoded(0))
    list_images(root)
    opened.clear()
    list_images(root)
    assert opened == ["0.png"]


def _cached(cache: Path) -> Path:
    (file,) = (cache / "data").glob("*.safetensors")
    return file


def test_damage_to_what_is_kept_is_harmless(root: Path, cache: Path) -> None:
    expected = list_images(root)
    sound = _cached(cache).read_bytes()
    damaged = [sound[:end] for end in range(0, len(sound), 97)]
    damaged += [sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :] for place in range(0, len(sound), 41)]
    for content in damaged:
        _cached(cache).write_bytes(content)
        found = list_images(root)
        assert (found.readable, found.skipped) == (expected.readable, expected.skipped)
        assert _cached(cache).read_bytes() != content


def test_what_is_kept_of_one_folder_says_nothing_of_another(root: Path, cache: Path, tmp_path: Path) -> None:
    list_images(root)
    first = _cached(cache)
    content = first.read_bytes()
    _save(tmp_path / "other" / "bad.png", encoded(3)[: len(b"no picture")])
    list_images(tmp_path / "other")
    (second,) = set((cache / "data").iterdir()) - {first}
    second.write_bytes(content)
    _save(tmp_path / "other" / "cat" / "0.png", b"x" * len(encoded(0)))
    assert list_images(tmp_path / "other").skipped == ("bad.png", "cat/0.png")


@pytest.mark.parametrize("place", ["a file", "nowhere"])
def test_without_a_cache_folder_all_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    blocked = _save(tmp_path / "blocked", b"in the way")
    monkeypatch.setenv("HVQ_CACHE", str(blocked / "deeper" if place == "a file" else os.devnull))
    assert len(list_images(root).readable) == 5


def test_many_that_list_at_the_same_time_leave_one_whole_file(root: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: list_images(root).readable, range(12)))
    assert set(found) == {list_images(root).readable}
    assert [path.suffix for path in (cache / "data").iterdir()] == [".safetensors"]


def test_two_names_of_one_folder_are_one(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        _save(tmp_path / "images" / name / "0.png", encoded(0))
    (tmp_path / "images" / "kitten").symlink_to("cat")
    (tmp_path / "images" / "all").symlink_to("dog")
    (tmp_path / "images" / "dog" / "loop").symlink_to(tmp_path / "images")
    assert list_images(tmp_path / "images").readable == ("cat/0.png", "dog/0.png")
