"""The same images as a folder, as tar shards and as parquet: the same samples, at random or read from end to end."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from hvq.data import (
    Augmentation,
    Batch,
    Sources,
    Streaming,
    TrainingStream,
    folder_sources,
    hub_sources,
    ordered_batches,
    shard_sources,
)
from hvq.errors import DataError
from tests.data.kinds import names_of, same, save_folder, save_parquet, save_shards, write_tar

COUNT, HELD_OUT = 29, 0.2
CHANGES = Augmentation(flip=True, shift=1.0)
pytestmark = pytest.mark.usefixtures("hub_cache")


def _sources(root: Path, kind: str, streaming: Streaming | None = None) -> Sources:
    options = {"size": (11, 7), "crop": "random", "augmentation": CHANGES, "seed": 5}
    if kind == "folder":
        return folder_sources(save_folder(root / "images", COUNT), validation_share=HELD_OUT, **options)
    save_folder(root / "images", COUNT)
    extra = {} if streaming is None else {"streaming": streaming}
    if kind == "shards":
        return shard_sources(save_shards(root / "images", 3), validation_share=HELD_OUT, **options, **extra)
    return hub_sources(save_parquet(root / "images", shards=3), validation_share=HELD_OUT, **options, **extra)


def test_shards_give_the_very_samples_of_a_folder(tmp_path: Path) -> None:
    folder, shards = (_sources(tmp_path / kind, kind) for kind in ("folder", "shards"))
    for one, other in ((folder.train, shards.train), (folder.validation, shards.validation)):
        assert names_of(one) == names_of(other)
        assert one.classes == other.classes == ("cat", "dog")
        indices = np.arange(len(one))[::-1].copy()
        assert same(one.fetch(indices), other.fetch(indices))
        epochs = np.full(len(one), 3)
        assert same(one.fetch(indices, epochs), other.fetch(indices, epochs))
    streams = [TrainingStream(sources.train, batch_size=5, seed=2) for sources in (folder, shards)]
    for one_step, other_step in zip(*(islice(stream, 9) for stream in streams), strict=True):
        assert same(one_step[0], other_step[0])


def test_parquet_holds_the_images_of_the_folder(tmp_path: Path) -> None:
    train, validation = (getattr(_sources(tmp_path / "hub", "hub"), split) for split in ("train", "validation"))
    # Another share is held out, by hash of the row, so the whole is compared.
    folder = folder_sources(save_folder(tmp_path / "folder", COUNT), size=(11, 7))
    expected = sorted(_pictures(folder.train) + _pictures(folder.validation))
    assert sorted(_pictures(train) + _pictures(validation)) == expected


def _pictures(source: object) -> list[tuple[int, bytes]]:
    batch: Batch = source.fetch(np.arange(len(source)))  # type: ignore[attr-defined, arg-type]
    return [(int(label), image.numpy().tobytes()) for label, image in zip(batch.labels, batch.images, strict=True)]


@pytest.mark.parametrize("kind", ["shards", "hub"])
@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (2, 0), (3, 0), (2, 2)])
def test_a_stream_has_one_order_on_any_number_of_processes_and_from_any_step(
    tmp_path: Path, kind: str, processes: int, workers: int
) -> None:
    source = _sources(tmp_path, kind, Streaming(enabled=True, lanes=3, shuffle_buffer=7)).train
    alone = [step[0] for step in islice(TrainingStream(source, batch_size=6, seed=2), 11)]
    begun = 4
    parts = [
        list(
            islice(
                TrainingStream(
                    source, batch_size=6, seed=2, rank=rank, processes=processes, workers=workers, start_step=begun
                ),
                7,
            )
        )
        for rank in range(processes)
    ]
    for i, expected in enumerate(alone[begun:]):
        found = [part[i][0] for part in parts]
        assert np.concatenate([batch.indices for batch in found]).tolist() == expected.indices.tolist()
        assert b"".join(batch.images.numpy().tobytes() for batch in found) == expected.images.numpy().tobytes()
    # Every sample once in an epoch, in another order each time.
    epochs = np.concatenate([batch.epochs.numpy() for batch in alone])
    indices = np.concatenate([batch.indices.numpy() for batch in alone])
    assert sorted(indices[epochs == 0].tolist()) == list(range(len(source)))
    assert indices[epochs == 0].tolist() != indices[epochs == 1].tolist()


@pytest.mark.parametrize("kind", ["shards", "hub"])
def test_a_stream_in_order_of_index_is_the_source_itself(tmp_path: Path, kind: str) -> None:
    at_random = _sources(tmp_path / "random", kind, Streaming(enabled=False)).train
    streamed = _sources(tmp_path / "stream", kind, Streaming(enabled=True)).train
    assert names_of(at_random) == names_of(streamed) or kind == "shards"
    for rank in range(2):
        for batch in ordered_batches(streamed, chunk_size=4, rank=rank, processes=2, epoch=1):
            assert same(batch, streamed.fetch(batch.indices.numpy(), batch.epochs.numpy()))
    assert sorted(_pictures(at_random)) == sorted(_pictures(streamed))


def test_a_damaged_sample_is_named_with_its_shard(tmp_path: Path) -> None:
    good = (save_folder(tmp_path / "images", 5) / "cat" / "001.png").read_bytes()
    # Sound at both ends, so that it is found out when it is decoded.
    bad = good[:60] + bytes(len(good) - 80) + good[-20:]
    write_tar(tmp_path / "x.tar", [("a/1.png", good), ("a/2.png", bad), ("b/3.png", good), ("b/4.png", good)])
    sources = shard_sources(str(tmp_path / "x.tar"), size=(5, 5), validation_share=0.2)
    held = names_of(sources.validation)
    source = sources.validation if any("2" in name for name in held) else sources.train
    with pytest.raises(DataError, match=r"2.* of shard .*x\.tar"):
        source.fetch(np.arange(len(source)))
