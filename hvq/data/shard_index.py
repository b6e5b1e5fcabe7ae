"""What tar shards hold: each is looked through once, and what was found is kept.

They are laid out as webdataset wants them: members of one name and several suffixes are a sample. Of the members only
images, `.cls` and `.json` are ever looked at: what could hold a pickle is passed over.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvq.data.findings import Arrays, keep, pack, recall, unpack
from hvq.data.listing import is_settled, stamp_of
from hvq.data.pictures import SUFFIXES, is_readable
from hvq.data.tar import (
    ATTEMPTS,
    TAR_ERRORS,
    Shard,
    at_random,
    extracted,
    is_plain,
    members,
    open_shard,
    opened_tar,
    plain_name,
    reading,
    suffix_of,
)
from hvq.errors import DataError

_WHAT = "shard"
_LABEL = "cls"
_JSON = "json"
_MOST_LABEL_BYTES = 2**16
_MOST_JSON_BYTES = 2**24
# No picture of as many pixels as are decoded is larger.
_MOST_IMAGE_BYTES = 2**29


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
    with open_shard(shard) as stream, opened_tar(stream, random_access=at_random(shard)) as archive:
        for member in members(archive):
            name, suffix = plain_name(member.name), suffix_of(member.name)
            if f".{suffix}" in SUFFIXES:
                yield {"fname": name, "data": _look(archive, member, at_random(shard)), "__url__": shard.address}
            elif suffix in suffixes and is_plain(member):
                yield {"fname": name, "data": _small(archive, member), "__url__": shard.address}


def _look(archive: tarfile.TarFile, member: tarfile.TarInfo, seekable: bool) -> _Image:
    # A link holds no picture of its own.
    readable = is_plain(member) and member.size <= _MOST_IMAGE_BYTES
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
