"""Codes of all images, each with its label, made by the autoencoder that the folder names."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hvq.config import RunConfig
from hvq.data import CodeFolder, Sources, code_writing
from hvq.data.pixels import bytes_to_model
from hvq.errors import CheckpointError, DataError
from hvq.storage import RunFolder, encoder_hash, load_autoencoder
from hvq.training import codes as codes_module
from hvq.training import extract_codes
from tests.processes import run_in_processes
from tests.runs import CLASSES, HELD_OUT_IMAGES, TRAIN_IMAGES, TrainedRun, changed, files_below, rewrite_codes


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
    names = ("counts.safetensors", "index.json", "shard-00000.safetensors")
    assert files == [f"{split}/{name}" for split in ("train", "validation") for name in names]
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


# --- interrupted, and gone on with --------------------------------------------------------------------------------


class Ended(BaseException):
    """Stands for the end of the process."""


def _ended_after(run: TrainedRun, files: int) -> None:
    """Extraction is ended as it begins to write a file, after so many; codes of another autoencoder are there."""
    for split in ("train", "validation"):
        rewrite_codes(run.run, split, encoder_hash="old")
    left = iter(range(files, -1, -1))
    original = code_writing.write_shard

    def write(*words: Any) -> None:
        if next(left) == 0:
            raise Ended
        original(*words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_writing, "write_shard", write)
        with pytest.raises(Ended):
            _extract(run)


def _extract(run: TrainedRun, *, resume: bool = False, sources: Sources | None = None) -> tuple[int, str]:
    """How many batches of images are encoded, and what is said."""
    encoded, out = 0, io.StringIO()
    original = codes_module.encode_batch

    def encode(*words: Any) -> dict[str, torch.Tensor]:
        nonlocal encoded
        encoded += 1
        return original(*words)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(codes_module, "encode_batch", encode)
        extract_codes(run.config, run.run, resume=resume, sources=sources)
    return encoded, out.getvalue()


# 47 images twice and 23 once, in files of 17, in chunks of 7: so many chunks in each file.
CHUNKS = [3, 3, 3, 3, 3, 2, 3, 1]


@pytest.mark.parametrize("files", [0, 1, 4, 6, 7])
def test_only_what_is_missing_is_encoded(copied_run: TrainedRun, files: int) -> None:
    expected = files_below(copied_run.run.codes)
    _ended_after(copied_run, files)
    # The old ones stay until all new ones are there.
    assert [CodeFolder(copied_run.run.codes, split).encoder_hash for split in ("train", "validation")] == ["old"] * 2
    encoded, said = _extract(copied_run, resume=True)
    assert encoded == sum(CHUNKS[files:])
    assert (f"codes of train: {min(files, 6)} of 6 files are there already" in said) == (files > 0)
    assert files_below(copied_run.run.codes) == expected
    assert _extract(copied_run, resume=True)[0] == 0
    assert _extract(copied_run)[0] == sum(CHUNKS)


def test_codes_of_other_images_or_settings_are_made_anew(copied_run: TrainedRun) -> None:
    """Whole ones too; and the same ones are not, whatever they are kept apart by."""
    same = TrainedRun(changed(copied_run.config, data__workers=1, autoencoder_training__steps=3), copied_run.run)
    assert _extract(same, resume=True)[0] == 0
    for changes in ({"seed": 4}, {"chunk_size": 5}, {"extraction__images_per_shard": 5}, {"data__augmentation": {}}):
        other = TrainedRun(changed(copied_run.config, **changes), copied_run.run)
        assert _extract(other, resume=True)[0] > 0
        assert _extract(other, resume=True)[0] == 0
    sources = other.sources
    sources.train._labels[5] = 2  # type: ignore[attr-defined]
    assert _extract(other, resume=True, sources=sources)[0] == sum(CHUNKS[:6])


def test_codes_of_a_retrained_autoencoder_are_made_anew(copied_run: TrainedRun) -> None:
    _ended_after(copied_run, 3)
    file = copied_run.run.autoencoder / "model.safetensors"
    tensors = load_file(file)
    tensors["levels.top.projection.bias"] += 1
    save_file(tensors, file)
    assert _extract(copied_run, resume=True)[0] == sum(CHUNKS)
    model, _ = load_autoencoder(copied_run.run.autoencoder)
    for split in ("train", "validation"):
        CodeFolder(copied_run.run.codes, split).require_encoder(encoder_hash(model))


def _resumed_in_group(plain: dict[str, Any], folder: str) -> None:
    extract_codes(RunConfig.model_validate(plain), RunFolder(folder), resume=True)


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_goes_on(copied_run: TrainedRun, processes: int) -> None:
    expected = files_below(copied_run.run.codes)
    _ended_after(copied_run, 4)
    plain = copied_run.config.model_dump(mode="json")
    run_in_processes(_resumed_in_group, processes, plain, str(copied_run.run.path))
    assert files_below(copied_run.run.codes) == expected
