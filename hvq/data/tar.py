"""Samples in tar shards, laid out as webdataset wants them: members of one name and several suffixes are a sample.

Of the members only images, `.cls` and `.json` are ever looked at: what could hold a pickle is passed over.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import os
import re
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from hvq.data.findings import Arrays, keep, pack, recall, unpack
from hvq.data.listing import is_settled, stamp_of
from hvq.data.pictures import SUFFIXES, is_readable, open_regular
from hvq.errors import DataError

TAR_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)
"""What reading a tar file raises where it is missing, damaged, or cut short."""

ATTEMPTS = 3
"""Times that a connection which breaks off is taken up again without a sample in between."""

_WHAT = "shard"
_LABEL = "cls"
_JSON = "json"
_MOST_LABEL_BYTES = 2**16
_MOST_JSON_BYTES = 2**24
# No picture of as many pixels as are decoded is larger.
_MOST_IMAGE_BYTES = 2**29
# `tar` fills its last record with zeros; with the largest blocking factors in use, that is less.
_MOST_END_BYTES = 2**20
# Longer than the programs that load try again by themselves, with a server that is not ready.
_SILENT_SECONDS = 120.0
# Names that webdataset leaves out.
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        address: a path, or a URL.
        local: whether it is a file of this machine.
    """

    address: str
    local: bool

    @property
    def compressed(self) -> bool:
        """Whether its members do not lie in it as they are."""
        return not self.address.endswith(".tar")


@dataclass(frozen=True)
class ShardIndex:
    """What one shard holds.

    Attributes:
        names: of the image of each sample, as it stands in the shard.
        offsets: where it begins, in bytes from the beginning of the uncompressed shard, int64 `[n]`.
        sizes: its bytes, int64 `[n]`.
        labels: class of each sample as text, empty where it has none.
        skipped: names of images that cannot be read.
        stamp: size and time of change of the file, int64 `[2]`; zeros for a URL.
    """

    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: tuple[str, ...]
    skipped: tuple[str, ...]
    stamp: NDArray[np.int64]


def index_shard(shard: Shard, label_key: str | None) -> ShardIndex:
    """What a shard holds, from one pass over it, ever: what was found is kept in the user's cache folder.

    A file is read again when its size or its time of change is another. Of a URL nothing tells that: should its
    content turn out to be another, `forget_shard` has it read again.

    Args:
        shard: the tar file.
        label_key: key of the class in the `.json` of each sample; None for `.cls`.

    Raises:
        DataError: where it cannot be read, is damaged or cut short, or its samples are not as they should be.
    """
    started = time.time_ns()
    stamp = np.array(stamp_of(_status(shard)) if shard.local else (0, 0), np.int64)
    mark = _mark(stamp, label_key)
    known = recall(_WHAT, shard.address, mark)
    if known is not None:
        return _from_arrays(known, stamp)
    found = _scanned(shard, stamp, label_key)
    if not shard.local or is_settled(int(stamp[1]), started):
        keep(_WHAT, shard.address, mark, _to_arrays(found))
    return found


def forget_shard(shard: Shard) -> None:
    """Have the next `index_shard` read a shard again."""
    keep(_WHAT, shard.address, "", {})


def _mark(stamp: NDArray[np.int64], label_key: str | None) -> str:
    # Another text than that of findings from before an end was looked for.
    return f"read to its end: {stamp.tolist()} {label_key!r}"


def _status(shard: Shard) -> os.stat_result:
    try:
        return os.stat(shard.address)
    except OSError as error:
        raise DataError(f"shard {shard.address} cannot be read ({error}); name shards that exist") from None


def _to_arrays(index: ShardIndex) -> Arrays:
    return {
        "names": pack(index.names),
        "offsets": index.offsets,
        "sizes": index.sizes,
        "labels": pack(index.labels),
        "skipped": pack(index.skipped),
    }


def _from_arrays(arrays: Arrays, stamp: NDArray[np.int64]) -> ShardIndex:
    names, labels, skipped = (tuple(unpack(arrays[name])) for name in ("names", "labels", "skipped"))
    return ShardIndex(names, arrays["offsets"], arrays["sizes"], labels, skipped, stamp)


# --- scanning --------------------------------------------------------------------------------------------------------


def _scanned(shard: Shard, stamp: NDArray[np.int64], label_key: str | None) -> ShardIndex:
    """What a scan finds; where a connection breaks off, it begins again."""
    for attempt in range(1, ATTEMPTS):
        try:
            return _scan(shard, stamp, label_key)
        except TAR_ERRORS as error:
            # Errors of values are of samples that are not as they should be.
            if shard.local or isinstance(error, ValueError):
                with reading(shard):
                    raise
        time.sleep(attempt)
    with reading(shard):
        return _scan(shard, stamp, label_key)


@dataclass(frozen=True)
class _Image:
    """The image of a sample, as it was found."""

    name: str
    offset: int
    size: int
    readable: bool


def _scan(shard: Shard, stamp: NDArray[np.int64], label_key: str | None) -> ShardIndex:
    from webdataset.tariterators import group_by_keys

    suffixes = {_LABEL} if label_key is None else {_JSON}
    names, labels, skipped = list[str](), list[str](), list[str]()
    places: list[tuple[int, int]] = []
    pieces: dict[str, bool] = {}
    for sample in group_by_keys(_looked_at(shard, suffixes)):
        images = [value for value in sample.values() if isinstance(value, _Image)]
        # The one class or picture would be that of nothing, and the other without.
        if pieces.setdefault(sample["__key__"], bool(images)) != bool(images):
            raise ValueError(
                f"the members of sample {sample['__key__']!r} do not lie side by side; write it with `tar --sort=name`"
            )
        if len(images) > 1:
            raise ValueError(
                f"sample {sample['__key__']!r} holds {len(images)} images, "
                f"{' and '.join(image.name for image in images)}; one is wanted"
            )
        for image in images:
            if not image.readable:
                skipped.append(image.name)
                continue
            names.append(image.name)
            places.append((image.offset, image.size))
            labels.append(_label(sample, label_key))
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T.copy()
    return ShardIndex(tuple(names), offsets, sizes, tuple(labels), tuple(skipped), stamp)


def _looked_at(shard: Shard, suffixes: set[str]) -> Iterator[dict[str, Any]]:
    """What `group_by_keys` takes, of images and labels."""
    with open_shard(shard) as stream, opened_tar(stream, random_access=_at_random(shard)) as archive:
        for member in _members(archive):
            name, suffix = plain_name(member.name), _suffix(member.name)
            if f".{suffix}" in SUFFIXES:
                yield {"fname": name, "data": _look(archive, member, _at_random(shard)), "__url__": shard.address}
            elif suffix in suffixes and _is_plain(member):
                yield {"fname": name, "data": _small(archive, member), "__url__": shard.address}


def _look(archive: tarfile.TarFile, member: tarfile.TarInfo, seekable: bool) -> _Image:
    # A link holds no picture of its own.
    readable = _is_plain(member) and member.size <= _MOST_IMAGE_BYTES
    if readable:
        file = extracted(archive, member)
        readable = is_readable(file if seekable else io.BytesIO(file.read()))
    return _Image(plain_name(member.name), member.offset_data, member.size, readable)


def _small(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    most = _MOST_JSON_BYTES if member.name.lower().endswith(_JSON) else _MOST_LABEL_BYTES
    if member.size > most:
        raise ValueError(f"{member.name} holds {member.size:,} bytes, which is more than a class takes ({most:,})")
    return extracted(archive, member).read()


def _label(sample: dict[str, Any], label_key: str | None) -> str:
    data: bytes | None = sample.get(_LABEL if label_key is None else _JSON)
    if data is None:
        return ""
    try:
        text = data.decode("utf-8")
        value = text.strip() if label_key is None else json.loads(text).get(label_key)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the class of sample {sample['__key__']!r} cannot be read ({error})") from None
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | str) or "\0" in str(value):
        raise ValueError(f"the class of sample {sample['__key__']!r} must be a number or a name; it is {value!r}")
    return "" if str(value) == "-1" else str(value)


# --- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def reading(shard: Shard) -> Iterator[None]:
    """Names the shard in whatever goes wrong."""
    try:
        yield
    except DataError:
        raise
    except TAR_ERRORS as error:
        # The package appends what it had at hand; the first says what happened.
        reason = error.args[0] if type(error) is ValueError and error.args else error
        raise DataError(f"shard {shard.address} cannot be read ({reason}); mend or remove it and start again") from None


def _at_random(shard: Shard) -> bool:
    return shard.local and not shard.compressed


@contextmanager
def open_shard(shard: Shard) -> Iterator[BinaryIO]:
    """The bytes of a shard; one that is not of this machine is loaded by webdataset."""
    if shard.local:
        with open_regular(Path(shard.address)) as file:
            yield file
        return
    from webdataset.gopen import gopen

    stream = gopen(shard.address)
    try:
        with _impatient(stream) as watched:
            yield watched
    finally:
        # A program that loads would wait for a server that has stopped to send, and we for it.
        if process := getattr(stream, "proc", None):
            process.kill()
        with suppress(OSError):
            stream.close()


class _Watched:
    """The bytes that a program loads, and since when they are waited for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waits_since = math.inf
        self.silent = False

    def read(self, size: int) -> bytes:
        self._waits_since = time.monotonic()
        data = b""
        try:
            data = self._stream.read(size)
        except OSError:
            if not self.silent:
                raise
        finally:
            self._waits_since = math.inf
        if self.silent:
            raise OSError(f"nothing has come for {_SILENT_SECONDS:g} seconds")
        return data

    def watch(self, process: Popen[bytes], closed: threading.Event) -> None:
        """End the program where it is waited for too long."""
        while not closed.wait(_SILENT_SECONDS / 10):
            if time.monotonic() - self._waits_since > _SILENT_SECONDS:
                self.silent = True
                process.kill()
                return


@contextmanager
def _impatient(stream: BinaryIO) -> Iterator[BinaryIO]:
    """A stream whose other end may fall silent; it is not waited for forever, as its program would."""
    process = getattr(stream, "proc", None)
    if process is None:
        yield stream
        return
    watched, closed = _Watched(stream), threading.Event()
    threading.Thread(target=watched.watch, args=(process, closed), daemon=True).start()
    try:
        yield cast(BinaryIO, watched)
    finally:
        closed.set()


class _StrictMember(tarfile.TarInfo):
    """`tarfile` takes a damaged header, a zeroed one, or none at all, for the end; here they are what they are."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictMember:
        begins = tarfile_.offset == 0
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            _require_end(tarfile_)
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if begins:
                raise
            raise tarfile.ReadError("it has no end: it is cut short, or still being written") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged at byte {tarfile_.offset}: {error}") from None


def _require_end(archive: tarfile.TarFile) -> None:
    """Read on behind a block of zeros: only where nothing but the rest of a record follows does the archive end there.

    Otherwise a header was zeroed, a download into space that was set aside is not done, or archives were joined by
    `cat`, and what follows would be lost without a word.
    """
    assert archive.fileobj is not None
    ended, length = archive.offset, 0
    while block := archive.fileobj.read(tarfile.RECORDSIZE):
        length += len(block)
        if block.strip(b"\0"):
            raise tarfile.ReadError(
                f"zeros at byte {ended} stand where its end would be, and more follows: it is damaged, or made of "
                "several, which `tar --concatenate` joins"
            )
        if length > _MOST_END_BYTES:
            raise tarfile.ReadError(f"from byte {ended} on it is empty: it is damaged, or not yet loaded to its end")


@contextmanager
def opened_tar(stream: BinaryIO, *, random_access: bool) -> Iterator[tarfile.TarFile]:
    """A tar file, compressed or not; one of random access is not read but for what is asked of it.

    Raises:
        tarfile.TarError: where it is damaged or cut short, there and while it is read.
    """
    if random_access:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictMember) as archive:
            yield archive
        return
    begun = _Begun(stream.read(2), stream)
    # Of those that `tarfile` reads by itself it takes the first part for the whole.
    plain = gzip.GzipFile(fileobj=cast(BinaryIO, begun)) if begun.head == b"\x1f\x8b" else cast(Any, begun)
    with tarfile.open(fileobj=plain, mode="r|*", tarinfo=_StrictMember) as archive:
        yield archive


class _Begun:
    """A stream of which the first bytes have been read."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head = head
        self._again = head
        self._stream = stream

    def read(self, size: int) -> bytes:
        again, self._again = self._again[:size], self._again[size:]
        return again + self._stream.read(size - len(again))


def regular_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Plain files of an archive, without the names that webdataset leaves out."""
    return filter(_is_plain, _members(archive))


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        if not member.isdir() and not _META.match(member.name):
            yield member
        # Otherwise all of them are kept.
        archive.members = []  # type: ignore[attr-defined]


def plain_name(name: str) -> str:
    """The name of a member without a leading `./`."""
    return name.removeprefix("./").replace("\0", "?")


def _suffix(name: str) -> str:
    """All behind the first dot of the last part of a name, as webdataset cuts it, in lower case."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def is_image(name: str) -> bool:
    """Whether a member is the image of a sample.

    >>> is_image("cat/0.JPG"), is_image("cat/0.mask.png"), is_image("cat/0.cls")
    (True, False, False)
    """
    return f".{_suffix(name)}" in SUFFIXES


def extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    """The content of a plain file of an archive."""
    file = archive.extractfile(member)
    assert file is not None
    return cast(BinaryIO, file)


def all_images(shard: Shard) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of the images of a shard, one behind the other.

    Raises:
        OSError, tarfile.TarError: or others of `TAR_ERRORS`, where it cannot be read to its end.
    """
    with open_shard(shard) as stream, opened_tar(stream, random_access=False) as archive:
        for member in regular_members(archive):
            if is_image(member.name):
                yield plain_name(member.name), extracted(archive, member)


def read_range(shard: Shard, stamp: Sequence[int], offset: int, size: int) -> bytes:
    """Some bytes of a shard that lies on this machine.

    Raises:
        OSError: where they cannot be read.
        DataError: where the file is not the one that was indexed.
    """
    with open_regular(Path(shard.address)) as file:
        if stamp_of(os.fstat(file.fileno())) != tuple(stamp):
            raise DataError(
                f"shard {shard.address} is not the file that was there when the run began: it has been replaced or "
                "written to; put the old one back, or start again with the new one"
            )
        data = os.pread(file.fileno(), size, offset) if hasattr(os, "pread") else _seek_and_read(file, offset, size)
    if len(data) != size:
        raise OSError(f"it ends after {len(data)} of {size} bytes")
    return data


def _seek_and_read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
