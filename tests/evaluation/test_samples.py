"""Samples of a run, as files."""

from __future__ import annotations

import torch
from PIL import Image

from hvq.evaluation.samples import class_labels
from hvq.files import read_tensors
from tests.runs import TrainedRun


def test_labels_class_by_class() -> None:
    assert class_labels(3, 2) == [0, 0, 1, 1, 2, 2]
    assert class_labels(0, 5) == [-1] * 5


def test_images_labels_and_codes_are_on_disk(trained_run: TrainedRun) -> None:
    folder = trained_run.run.samples
    assert sorted(path.name for path in folder.iterdir()) == ["samples.png", "samples.safetensors"]
    tensors, _ = read_tensors(folder / "samples.safetensors", "samples")
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "images": (torch.uint8, (15, 1, 16, 16)),
        "labels": (torch.int64, (15,)),
        "codes.top": (torch.int64, (15, 2, 2)),
        "codes.bottom": (torch.int64, (15, 4, 4)),
    }
    assert tensors["labels"].tolist() == class_labels(3, 5)
    with Image.open(folder / "samples.png") as picture:
        assert min(picture.size) > 16 * 3
