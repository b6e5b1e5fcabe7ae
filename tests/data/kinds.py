"""The same images as a folder, as tar shards, and as parquet, for tests that read them each way."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hvq.data import Batch, ImageSource


def picture(seed: int, height: int = 13, width: int = 17) -> Image.Image:
    """Noise, another for each seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(seed: int, kind: str = "PNG") -> bytes:
    """A picture as the content of a file."""
    file = io.BytesIO()
    picture(seed).save(file, kind)
    return file.getvalue()


def save_folder(root: Path, count: int) -> Path:
    """So many images in the folders `cat` and `dog`."""
    for index in range(count):
        path = root / ("cat", "dog")[index % 3 == 0] / f"{index:03d}.{'png' if index % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(index, "PNG" if index % 2 else "JPEG"))
    return root


def files_of(root: Path) -> list[tuple[str, bytes]]:
    """Relative path and content of the images below a folder, in alphabetical order."""
    paths = sorted(path for path in root.rglob("*") if path.suffix in (".png", ".jpg"))
    return [(path.relative_to(root).as_posix(), path.read_bytes()) for path in paths]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar file of members by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def save_shards(root: Path, shards: int, name: str = "shard-{}.tar", shuffled: bool = False) -> str:
    """The images below a folder as shards beside it; what `shard_sources` takes to read them."""
    files = files_of(root)
    order = np.random.default_rng(0).permutation(len(files)) if shuffled else np.arange(len(files))
    for shard, numbers in enumerate(np.array_split(order, shards)):
        write_tar(root / name.format(shard), [files[number] for number in numbers])
    return str(root / name.format(f"{{0..{shards - 1}}}"))


def save_parquet(root: Path, name: str = "train-{}.parquet", shards: int = 1) -> str:
    """The images below a folder as parquet in that folder, the class of each being its folder; the path."""
    import datasets

    files = files_of(root)
    tops = sorted({path.partition("/")[0] for path, _ in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=tops)})
    for shard, numbers in enumerate(np.array_split(np.arange(len(files)), shards)):
        rows = datasets.Dataset.from_dict(
            {
                "image": [{"bytes": files[number][1], "path": files[number][0]} for number in numbers],
                "label": [tops.index(files[number][0].partition("/")[0]) for number in numbers],
            },
            features=features,
        )
        rows.to_parquet(root / name.format(shard), batch_size=5)
    return str(root / name.format("*"))


def names_of(source: ImageSource) -> list[str]:
    """What a source calls its images."""
    return [source.name(index) for index in range(len(source))]


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are equal in everything."""
    fields = ("images", "labels", "indices", "epochs")
    return all(getattr(one, name).equal(getattr(other, name)) for name in fields)
