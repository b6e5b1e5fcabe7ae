"""The image files below a folder: which can be read, and what tells that one has changed since."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvq.data.findings import Arrays, keep, pack, recall, unpack
from hvq.data.pictures import SUFFIXES, is_readable, open_regular

_WHAT = "folder"
# A file that was written so shortly before it was looked at may be written again without its time telling.
_SETTLED_NANOSECONDS = 2_000_000_000


@dataclass(frozen=True)
class Listing:
    """Image files below one folder, in alphabetical order.

    Attributes:
        root: the folder.
        readable: their paths relative to it, with `/` between their parts.
        stamps: size in bytes and time of change in nanoseconds of each of them, int64 `[N, 2]`.
        skipped: paths of those that cannot be read.
    """

    root: Path
    readable: tuple[str, ...]
    stamps: NDArray[np.int64]
    skipped: tuple[str, ...]

    def within(self, top: str) -> Listing:
        """What lies in the subfolder `top`, relative to it."""
        chosen = self.chosen(np.array([top_of(path) == top for path in self.readable], bool))
        skipped = tuple(_below(path, top) for path in self.skipped if top_of(path) == top)
        return Listing(self.root / top, tuple(_below(path, top) for path in chosen.readable), chosen.stamps, skipped)

    def without(self, tops: Sequence[str]) -> Listing:
        """What lies in none of the subfolders `tops`."""
        chosen = self.chosen(np.array([top_of(path) not in tops for path in self.readable], bool))
        skipped = tuple(path for path in self.skipped if top_of(path) not in tops)
        return Listing(self.root, chosen.readable, chosen.stamps, skipped)

    def chosen(self, mask: NDArray[np.bool_]) -> Listing:
        """The readable files for which `mask [N]` is true, and all that are skipped."""
        readable = tuple(path for path, wanted in zip(self.readable, mask.tolist(), strict=True) if wanted)
        return Listing(self.root, readable, self.stamps[mask], self.skipped)


def top_of(path: str) -> str:
    """The first folder of a relative path; empty for a file without one.

    >>> top_of("cat/young/0.png"), top_of("0.png")
    ('cat', '')
    """
    return path.partition("/")[0] if "/" in path else ""


def classes_of(paths: Sequence[str]) -> tuple[str, ...]:
    """The first folders of all paths in alphabetical order; none where a path has no folder.

    >>> classes_of(["dog/0.png", "cat/0.png", "dog/1.png"]), classes_of(["dog/0.png", "0.png"])
    (('cat', 'dog'), ())
    """
    tops = sorted({top_of(path) for path in paths})
    return () if "" in tops else tuple(tops)


def _below(path: str, top: str) -> str:
    return path[len(top) + 1 :]


def list_images(root: Path) -> Listing:
    """The image files below a folder, at any depth.

    Each is opened once, ever: what was found is kept in the user's cache folder for as long as size and time of change
    of the file stay what they are. Hidden files and folders are left out, links to folders are followed once.
    """
    started = time.time_ns()
    paths = sorted(paths_below(root, SUFFIXES))
    key = os.path.abspath(root)
    known = _recalled(key)
    # Threads, since this waits for the disk: thousands of small reads.
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: _look(root / path, known.get(path)), paths))
    entries = dict(zip(paths, found, strict=True))
    settled = {path: entry for path, entry in entries.items() if is_settled(entry[1], started)}
    if settled != known:
        _keep(key, settled)
    readable = tuple(path for path, (_, _, fine) in entries.items() if fine)
    stamps = np.array([entries[path][:2] for path in readable], np.int64).reshape(-1, 2)
    return Listing(root, readable, stamps, tuple(path for path, (_, _, fine) in entries.items() if not fine))


_Entry = tuple[int, int, bool]
"""Size, time of change, and whether the file can be read."""


def _look(path: Path, known: _Entry | None) -> _Entry:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return 0, 0, False
        size, changed = stamp_of(status)
        if known and known[:2] == (size, changed):
            return known
        with open_regular(path) as file:
            return size, changed, is_readable(file)
    except OSError:
        # Nor is it looked up again: rights may change without the time of the file.
        return 0, time.time_ns(), False


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds, which together tell that a file is the one it was."""
    return status.st_size, status.st_mtime_ns


def is_settled(changed: int, looked_at: int) -> bool:
    """Whether what was found in a file may be kept: it was last written to long enough before it was looked at."""
    return changed < looked_at - _SETTLED_NANOSECONDS


def _recalled(key: str) -> dict[str, _Entry]:
    arrays = recall(_WHAT, key, "")
    if arrays is None:
        return {}
    fields = (unpack(arrays["paths"]), arrays["sizes"].tolist(), arrays["times"].tolist(), arrays["readable"].tolist())
    return {path: (size, changed, fine) for path, size, changed, fine in zip(*fields, strict=True)}


def _keep(key: str, entries: dict[str, _Entry]) -> None:
    sizes, times, readable = zip(*entries.values(), strict=True) if entries else ((), (), ())
    arrays: Arrays = {
        "paths": pack(list(entries)),
        "sizes": np.array(sizes, np.int64),
        "times": np.array(times, np.int64),
        "readable": np.array(readable, np.bool_),
    }
    keep(_WHAT, key, "", arrays)


def paths_below(root: Path, suffixes: Collection[str]) -> Iterator[str]:
    """Relative paths of all files below a folder whose names end so; hidden ones are left out."""
    visited = {root.resolve()}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        # In an order of their own, which the disk's is not: of names of one folder its own is taken, or the first.
        candidates = [name for name in subfolders if not name.startswith(".")]
        subfolders.clear()
        for name in sorted(candidates, key=lambda name: ((here / name).is_symlink(), name)):
            place = (here / name).resolve()
            if place not in visited:
                visited.add(place)
                subfolders.append(name)
        inside = here.relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in files:
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                yield prefix + name
