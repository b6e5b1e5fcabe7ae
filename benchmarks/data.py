"""Images per second of decoding, resizing and batching, beside the same pixels in a bare loop and webdataset's own way.

    python benchmarks/data.py --data FOLDER --json data.json

The images of a folder are written as tar shards and as a data set of `datasets` first, each file as it is. The floor is
a loop on one core that opens each file with Pillow, decodes it at the same reduced scale, and resizes the same crop to
256x256; nothing is made of the result. All others give batches of uint8 tensors, and are measured from the first batch
on, in turn with the floor; a rate is the median over the turns. With workers, one core decodes for each, and this
process takes the batches. A call with the same file goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import load_rows, markdown, save_rows
from PIL import Image

from hvq.data import Batch, ImageSource, Streaming, TrainingStream, folder_sources, hub_sources, shard_sources
from hvq.data.pictures import convert, fit, read_reduced, to_tensor

SIZE = (256, 256)
BATCH = 20
SHARDS = 4
SEED = 0
# Batches with which workers and caches of files are warmed up.
WARM = 4
FLOOR = "floor: Pillow alone"
PEER = "webdataset"
HUB = "hvq/hub"
NEEDED = {PEER: "webdataset", HUB: "datasets", "hvq/hub, streamed": "datasets"}


@dataclass(frozen=True)
class Row:
    """One measurement; `times_floor` is its rate over that of the floor in the same turns."""

    implementation: str
    workers: int
    images_per_second: float
    times_floor: float


@dataclass(frozen=True)
class Copies:
    """The same images in every form.

    Attributes:
        folder: as files.
        shards: of tar, as `shard_sources` takes them.
        saved: as `datasets` saves them; `None` where it is not installed.
    """

    folder: Path
    shards: str
    saved: Path | None

    @property
    def files(self) -> list[Path]:
        """The files."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


# --- the same images in every form -----------------------------------------------------------------------------------


def make_copies(data: Path, root: Path, count: int | None) -> Copies:
    """The images below a folder in every form below `root`; the first `count` of them, or all."""
    files = [path for path in sorted(data.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")][:count]
    if len(files) < 2 * SHARDS:
        raise SystemExit(f"--data must be a folder of at least {2 * SHARDS} JPEG or PNG files; {data} has {len(files)}")
    folder = root / "folder"
    for number, file in enumerate(files):
        target = folder / f"{number:06d}{file.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    copied = sorted(folder.iterdir())
    for shard in range(SHARDS):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as archive:
            for file in copied[shard * len(copied) // SHARDS : (shard + 1) * len(copied) // SHARDS]:
                archive.add(file, arcname=file.name)
    return Copies(folder, str(root / f"shard-{{0..{SHARDS - 1}}}.tar"), _saved(copied, root / "saved"))


def _saved(files: list[Path], target: Path) -> Path | None:
    if importlib.util.find_spec("datasets") is None:
        return None
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(str(target))
    return target


# --- implementations: each an endless stream of batches --------------------------------------------------------------


def floor_images(files: list[Path]) -> Iterator[int]:
    """Sizes of batches of pictures that are decoded and resized, and let go."""
    while True:
        for start in range(0, len(files), BATCH):
            for file in files[start : start + BATCH]:
                with Image.open(file) as picture:
                    read_reduced(picture, SIZE)
                    fit(convert(picture, 3), SIZE)
            yield len(files[start : start + BATCH])


def hvq_batches(source: ImageSource, workers: int) -> Iterator[int]:
    """Sizes of the batches of a training stream."""
    for micro_batches in TrainingStream(source, batch_size=BATCH, seed=SEED, workers=workers):
        yield sum(_checked(batch) for batch in micro_batches)


def _checked(batch: Batch) -> int:
    assert batch.images.shape[1:] == (3, *SIZE), batch.images.shape
    return len(batch)


def peer_batches(copies: Copies, workers: int) -> Iterator[int]:
    """The pipeline that the pages of webdataset show: shards, shuffle, decode, transform, batch, its own loader."""
    import webdataset

    def transformed(sample: dict[str, Any]) -> torch.Tensor:
        picture = next(value for name, value in sample.items() if name in ("jpg", "jpeg", "png"))
        return to_tensor(fit(picture, SIZE))

    pipeline = webdataset.WebDataset(copies.shards, shardshuffle=SHARDS, seed=SEED, empty_check=False)
    pipeline = pipeline.shuffle(100).decode("pil").map(transformed).repeat().batched(BATCH, collation_fn=torch.stack)
    for images in webdataset.WebLoader(pipeline, batch_size=None, num_workers=workers):
        assert images.shape[1:] == (3, *SIZE), images.shape
        yield len(images)


def implementations(copies: Copies) -> dict[str, Callable[[int], Iterator[int]]]:
    """Makers of streams by number of workers, by name."""
    options: dict[str, Any] = {"size": SIZE, "seed": SEED, "validation_share": 0.0}
    streaming = Streaming(enabled=True, shuffle_buffer=100)
    sources: dict[str, Callable[[], ImageSource]] = {
        "hvq/folder": lambda: folder_sources(copies.folder, **options).train,
        "hvq/shards": lambda: shard_sources(copies.shards, **options).train,
        "hvq/shards, streamed": lambda: shard_sources(copies.shards, streaming=streaming, **options).train,
    }
    if copies.saved:
        saved = str(copies.saved)
        sources[HUB] = lambda: hub_sources(saved, **options).train
        sources["hvq/hub, streamed"] = lambda: hub_sources(saved, streaming=streaming, **options).train
    own = {
        name: (lambda workers, make=make: hvq_batches(make(), workers))  # type: ignore[misc]
        for name, make in sources.items()
    }
    return {**own, PEER: lambda workers: peer_batches(copies, workers)}


# --- measuring -------------------------------------------------------------------------------------------------------


def rate(stream: Iterator[int], seconds: float) -> float:
    """Images per second of a stream that runs, over at least so many seconds."""
    images, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        images += next(stream)
    return images / passed


def measure(make: Callable[[int], Iterator[int]], workers: int, copies: Copies, quick: bool) -> tuple[float, float]:
    """Median rates of a stream and of the floor, which take turns.

    Workers go on while the floor is measured, so a turn of the stream begins with what they have prepared by then: its
    rate is taken once those batches are gone.
    """
    turns, seconds = (3, 0.5) if quick else (5, 1.5)
    floor = floor_images(copies.files)
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        stream = make(workers)
        for _ in islice(stream, WARM + 2 * workers):
            pass
        measured = rate(stream, seconds)
        stream.close()  # type: ignore[attr-defined]
        if turn:
            rates[0].append(measured)
            rates[1].append(rate(floor, seconds))
    return statistics.median(rates[0]), statistics.median(rates[1])


def table(rows: list[Row]) -> str:
    """Markdown, with a line for each row."""
    lines = (
        (row.implementation, str(row.workers), f"{row.images_per_second:.0f}", f"{row.times_floor:.2f}") for row in rows
    )
    return markdown(["implementation", "workers", "images per second", "times floor"], lines)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JPEG or PNG files, at any depth")
    parser.add_argument("--images", type=int, help="the first so many of them; all by default")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers")
    parser.add_argument("--only", nargs="+", help="implementations, by name")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: about a minute")
    parser.add_argument("--json", type=Path, help="file of rows; what it holds is not measured again")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure what is not there yet, and print the table."""
    arguments = parse_arguments(words)
    torch.set_num_threads(1)
    rows = load_rows(arguments.json, Row)
    done = {(row.implementation, row.workers) for row in rows}
    with tempfile.TemporaryDirectory() as root:
        os.environ["HVQ_CACHE"] = str(Path(root) / "cache")
        copies = make_copies(arguments.data, Path(root), arguments.images)
        makers = {FLOOR: lambda workers: floor_images(copies.files), **implementations(copies)}
        for name, make in makers.items():
            module = NEEDED.get(name)
            if module and importlib.util.find_spec(module) is None:
                print(f"skipped: {name}: the package {module} is not installed", file=sys.stderr)
                continue
            for workers in [0] if name == FLOOR else arguments.workers:
                if (name, workers) in done or (arguments.only and name not in arguments.only):
                    continue
                own, floor = measure(make, workers, copies, arguments.quick)
                rows.append(Row(name, workers, round(own, 1), 1.0 if name == FLOOR else round(own / floor, 3)))
                save_rows(arguments.json, rows)
    print(f"Pillow {Image.__version__}; torch {torch.__version__}; numpy {np.__version__}; {os.cpu_count()} cores")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
