"""Codes of all images, each with its label, made by the autoencoder that the folder names."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

from hvq.data import CodeFolder
from hvq.data.pixels import bytes_to_model
from hvq.errors import CheckpointError, DataError
from hvq.storage import encoder_hash, load_autoencoder
from hvq.training import extract_codes
from tests.runs import CLASSES, HELD_OUT_IMAGES, TRAIN_IMAGES, TrainedRun, changed, files_below


def test_both_splits_with_labels_and_the_hash(trained_run: TrainedRun) -> None:
    model, _ = load_autoencoder(trained_run.run.autoencoder)
    sources = trained_run.sources
    for split, source, rows in (
        ("train", sources.train, 2 * TRAIN_IMAGES),
        ("validation", sources.validation, HELD_OUT_IMAGES),
    ):
        folder = CodeFolder(trained_run.run.codes, split)
        assert len(folder) == rows
        folder.require_encoder(encoder_hash(model))
        assert (folder.level_names, folder.classes, folder.image_size) == (("top", "bottom"), CLASSES, (16, 16))
        batch = folder.fetch(np.arange(rows))
        assert batch.labels.tolist() == [source.label(row % len(source)) for row in range(rows)]


def test_codes_are_those_of_the_images(trained_run: TrainedRun) -> None:
    """The first pass is over the images as they are, the second over those of augmented epoch 1."""
    model, _ = load_autoencoder(trained_run.run.autoencoder)
    source = trained_run.sources.train
    codes = CodeFolder(trained_run.run.codes, "train").fetch(np.arange(2 * TRAIN_IMAGES)).codes
    passes = []
    for epoch in (None, 1):
        images = torch.stack([source.image(i, epoch) for i in range(TRAIN_IMAGES)])
        # The fixed size of forwards, whose last chunk is filled up.
        images = torch.cat([images, images[-1:].expand(49 - TRAIN_IMAGES, -1, -1, -1)])
        passes.append([model.encode(bytes_to_model(part)) for part in images.split(7)])
    for level in ("top", "bottom"):
        expected = [torch.cat([part[level] for part in parts])[:TRAIN_IMAGES] for parts in passes]
        assert torch.equal(codes[level], torch.cat(expected))
        assert not torch.equal(*expected)


def test_writing_again_replaces_what_was_there(copied_run: TrainedRun) -> None:
    before = files_below(copied_run.run.codes)
    config = changed(copied_run.config, extraction__images_per_shard=1000, extraction__augmented_epochs=1)
    with redirect_stdout(io.StringIO()):
        extract_codes(config, copied_run.run)
    files = sorted(files_below(copied_run.run.codes))
    assert files == [
        f"{split}/{name}" for split in ("train", "validation") for name in ("index.json", "shard-000-00000.safetensors")
    ]
    extract_codes(copied_run.config, copied_run.run)
    assert files_below(copied_run.run.codes) == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data__size": [8, 7], "autoencoder__levels__bottom__ratio": 2}, r"images of 8x7 are smaller than the coarse"),
        ({"data__channels": 3, "autoencoder__channels": 3}, r"takes images of 1 channel\(s\); data.channels gives 3"),
    ],
)
def test_images_that_do_not_fit_leave_the_codes_alone(
    copied_run: TrainedRun, changes: dict[str, object], sentence: str
) -> None:
    before = files_below(copied_run.run.path)
    with pytest.raises(DataError, match=sentence):
        extract_codes(changed(copied_run.config, **changes), copied_run.run)
    assert files_below(copied_run.run.path) == before


def test_a_damaged_autoencoder_leaves_the_codes_alone(copied_run: TrainedRun) -> None:
    file = copied_run.run.autoencoder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    before = files_below(copied_run.run.path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        extract_codes(copied_run.config, copied_run.run)
    assert files_below(copied_run.run.path) == before
