"""Vectors for samples: those of training images of the class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvq.data import CodeExtraction, CodeFolder
from hvq.data.vectors import hash_vectors
from hvq.evaluation.sample_vectors import training_vectors
from tests.data.small_codes import IMAGES, LABELS, description, write_shards


def test_they_are_of_images_of_the_class_whatever_else_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of the image, and its class.
    vectors = torch.stack([torch.arange(IMAGES), LABELS], dim=1).float()
    extraction = CodeExtraction(tmp_path, "train", description(vector_size=2, vectors_hash=hash_vectors(vectors)))
    extraction.begin()
    extraction.finish(write_shards(extraction, list(range(extraction.description.num_shards))), vectors)
    codes, labels = CodeFolder(tmp_path, "train"), torch.arange(211) % 3 - 1
    found = training_vectors(codes, labels, 3)
    for label in (0, 1):
        assert found[labels == label, 1].unique().tolist() == [label]
        # 70 draws among 6 or 5 images leave none out.
        assert set(found[labels == label, 0].tolist()) == set(vectors[label == LABELS, 0].tolist())
    assert found[labels == -1, 1].unique().tolist() == [-1, 0, 1], "without a class, any image will do"
    assert torch.equal(training_vectors(codes, labels[:100], 3), found[:100])
    assert not torch.equal(training_vectors(codes, labels, 4), found)
    unseen = training_vectors(codes, torch.full((50,), 7), 3)
    assert len(unseen[:, 1].unique()) == 3, "nor where no image is of the class"

    def refuse(*_: object) -> None:
        raise AssertionError("codes are read, which may be far more than memory holds")

    monkeypatch.setattr(CodeFolder, "fetch", refuse)
    assert torch.equal(training_vectors(codes, labels, 3), found)
