"""A folder of a few codes, written as processes write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvq.data import CodeExtraction, CodesDescription, ShardWriter
from hvq.data.code_files import Counts, empty_counts

IMAGES, EPOCHS = 17, 2
SIZES = {"top": 7, "bottom": 300}
GRIDS = {"top": (2, 3), "bottom": (5, 7)}
LABELS = torch.arange(IMAGES) % 3 - 1


def description(**changes: Any) -> CodesDescription:
    fields: dict[str, Any] = {
        "level_names": ("top", "bottom"),
        "codebook_sizes": SIZES,
        "grids": GRIDS,
        "image_size": (20, 28),
        "encoder_hash": "abc",
        "classes": ("cat", "dog"),
        "num_images": IMAGES,
        "augmented_epochs": EPOCHS,
        "images_per_shard": 5,
    }
    return CodesDescription(**fields | changes)


def codes_of(rows: int = IMAGES * EPOCHS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        level: torch.randint(0, SIZES[level], (rows, *GRIDS[level]), generator=generator) for level in ("bottom", "top")
    }


def add_rows(writer: ShardWriter, rows: range, chunk: int = 4) -> None:
    """Hand over some rows, a chunk at a time."""
    for part in torch.tensor(rows).split(chunk):
        codes = {level: values[part] for level, values in codes_of().items()}
        writer.add(codes, labels=LABELS[part % IMAGES], indices=part % IMAGES)


def write_shards(extraction: CodeExtraction, shards: list[int], chunk: int = 4) -> Counts:
    """Write some files; their counts."""
    counts = empty_counts(extraction.description)
    for shard in shards:
        writer = extraction.writer(shard)
        add_rows(writer, extraction.description.rows(shard), chunk)
        for level, count in writer.close().items():
            counts[level] += count
    return counts


def write(folder: Path, *, split: str = "train", chunk: int = 4, **changes: Any) -> Path:
    """A whole split, its last files first, for they appear in any order."""
    extraction = CodeExtraction(folder, split, description(**changes))
    extraction.begin()
    extraction.finish(write_shards(extraction, list(reversed(range(extraction.description.num_shards))), chunk))
    return folder / split


def turn_a_bit(path: Path) -> None:
    """Damage that leaves a file as long as it was, in its last number."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def memory(kind: str) -> int:
    """Bytes of this process's memory on Linux: `RssAnon` its own, `RssFile` of mapped files, `VmHWM` most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def write_large(folder: Path, images: int) -> Path:
    """A split of codes that take 256 kB an image, one image after the other."""
    large = description(
        level_names=("top",),
        codebook_sizes={"top": 5},
        grids={"top": (512, 512)},
        num_images=images,
        augmented_epochs=1,
        images_per_shard=8,
    )
    extraction = CodeExtraction(folder, "train", large)
    extraction.begin()
    counts = empty_counts(large)
    for shard in range(large.num_shards):
        writer = extraction.writer(shard)
        for row in large.rows(shard):
            codes = {"top": torch.full((1, 512, 512), row % 5)}
            writer.add(codes, labels=torch.tensor([-1]), indices=torch.tensor([row]))
        counts["top"] += writer.close()["top"]
    extraction.finish(counts)
    return folder / "train"
