"""Tar shards as files: opened here or by URL, read from end to end or at a place, and told from damaged ones."""

from __future__ import annotations

import gzip
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

from hvq.data.listing import stamp_of
from hvq.data.pictures import SUFFIXES, open_regular
from hvq.errors import DataError

TAR_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)
"""What reading a tar file raises where it is missing, damaged, or cut short."""

ATTEMPTS = 3
"""Times that a connection which breaks off is taken up again without a sample in between."""

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


def at_random(shard: Shard) -> bool:
    """Whether any place of it is read at once."""
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
    return filter(is_plain, members(archive))


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file whose content lies in the archive as it is."""
    return member.isreg() and not member.issparse()


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """What an archive holds, without folders and the names that webdataset leaves out."""
    for member in archive:
        if not member.isdir() and not _META.match(member.name):
            yield member
        # Otherwise all of them are kept.
        archive.members = []  # type: ignore[attr-defined]


def plain_name(name: str) -> str:
    """The name of a member without a leading `./`."""
    return name.removeprefix("./").replace("\0", "?")


def suffix_of(name: str) -> str:
    """All behind the first dot of the last part of a name, as webdataset cuts it, in lower case."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def is_image(name: str) -> bool:
    """Whether a member is the image of a sample.

    >>> is_image("cat/0.JPG"), is_image("cat/0.mask.png"), is_image("cat/0.cls")
    (True, False, False)
    """
    return f".{suffix_of(name)}" in SUFFIXES


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
