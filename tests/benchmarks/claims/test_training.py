"""Images and training that the claims share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from hvq.files import write_tensors

FEATURES = {"width": 8, "residual_blocks": 1, "residual_width": 4}
LEVELS = {"top": {"ratio": 4, "codebook_size": 7, "code_dimension": 3, **FEATURES}}


@pytest.fixture
def training(load_claim: Callable[[str], ModuleType]) -> ModuleType:
    return load_claim("training")


def test_digits_come_at_the_size_that_is_asked_for(training: ModuleType) -> None:
    images = training.digits(8)
    assert images.train.shape == (1437, 1, 8, 8)
    assert images.held_out.shape == (360, 1, 8, 8)
    assert (images.classes, images.channels) == (10, 1)
    assert images.train_labels.shape == (1437,)
    # At the size that they were scanned at they have the seventeen shades that they were scanned in.
    assert len(images.train.unique()) == 17


def test_cifar10_is_read_as_far_as_is_asked_for(training: ModuleType, tmp_path: Path) -> None:
    pixels = {"train": torch.randint(0, 256, (23, 3, 32, 32), dtype=torch.uint8)}
    pixels["val"] = pixels["train"][:11]
    for split, images in pixels.items():
        tensors = {"images": images, "labels": torch.arange(len(images)) % 3}
        write_tensors(tmp_path / f"cifar10-{split}.safetensors", tensors)
    found = training.cifar10(tmp_path, train=13)
    assert torch.equal(found.train, pixels["train"][:13])
    assert torch.equal(found.held_out, pixels["val"])
    assert found.held_out_labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]


def test_batches_hold_every_row_once_an_epoch_by_the_seed(training: ModuleType) -> None:
    rows = torch.arange(15)
    epochs = [torch.cat(list(islice(training.batches(rows, 5, seed), 6))).split(15) for seed in (3, 3, 4)]
    assert all(part.sort().values.tolist() == list(range(15)) for epoch in epochs for part in epoch)
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(epochs[0][0], epochs[0][1])
    assert not torch.equal(epochs[0][0], epochs[2][0])
    assert len(next(training.batches(rows, 64, 0))) == 15


def test_the_learning_rate_rises_and_falls_to_a_twentieth(training: ModuleType) -> None:
    schedule = training.Schedule(200, learning_rate=1.0)
    rates = [schedule.rate(step) for step in range(201)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[105] == pytest.approx(0.05 + 0.95 / 2)
    assert rates[200] == pytest.approx(0.05)


def test_anything_can_be_fitted(training: ModuleType) -> None:
    torch.manual_seed(0)
    rows, model, steps = torch.randn(97, 3), nn.Linear(3, 1), []
    targets = rows @ torch.tensor([1.0, -2.0, 0.5]) + 0.3

    def loss(batch: Tensor) -> tuple[Tensor, dict[str, object]]:
        wanted = batch @ torch.tensor([1.0, -2.0, 0.5]) + 0.3
        return (model(batch).squeeze(1) - wanted).square().mean(), {}

    training.fit(model, rows, loss, training.Schedule(300, learning_rate=3e-2), seed=0, observe=steps.append)
    assert steps == list(range(1, 301))
    with torch.no_grad():
        assert float((model(rows).squeeze(1) - targets).square().mean()) < 1e-3
    assert not model.training


@pytest.mark.parametrize("kind", ["vector", "gaussian"])
def test_an_autoencoder_learns_alike_from_one_seed(training: ModuleType, kind: str) -> None:
    images = training.digits(8)
    levels = {"top": {**LEVELS["top"], "quantizer": {"kind": kind}}}
    errors = []
    for seed in (0, 0, 1):
        model = training.make_autoencoder(seed, channels=1, levels=levels, decoder=FEATURES)
        before = training.reconstruction_error(model, images.held_out)
        training.train_autoencoder(model, images.train, training.Schedule(30, learning_rate=5e-3), seed=seed)
        errors.append(training.reconstruction_error(model, images.held_out))
    assert errors[0] == errors[1] != errors[2]
    assert errors[0] < 0.9 * before
    restored = training.reconstructions(model, images.held_out)
    direct = (restored.double() - images.held_out.double() / 255).square().mean()
    assert errors[2] == pytest.approx(float(direct), rel=1e-5)


@pytest.mark.parametrize("kmeans", [True, False])
def test_codebooks_begin_by_k_means_where_that_is_asked_for(training: ModuleType, kmeans: bool) -> None:
    images = training.digits(8)
    model = training.make_autoencoder(0, channels=1, levels=LEVELS, decoder=FEATURES)
    before = model.quantizers["top"].codebooks[0].vectors.clone()
    training.train_autoencoder(model, images.train, training.Schedule(0), seed=0, kmeans=kmeans)
    assert model.quantizers["top"].initialized == kmeans
    assert torch.equal(model.quantizers["top"].codebooks[0].vectors, before) != kmeans


def test_codes_are_those_of_the_model(training: ModuleType) -> None:
    images = training.digits(8).train
    model = training.make_autoencoder(0, channels=1, levels=LEVELS, decoder=FEATURES).eval()
    codes = training.codes_of(model, images)["top"]
    assert codes.shape == (1437, 2, 2)
    assert torch.equal(codes[-3:], model.encode(images[-3:].float() / 127.5 - 1)["top"])


def test_level_dropout_leaves_out_the_finest_levels_of_a_share(training: ModuleType) -> None:
    torch.manual_seed(0)
    kept = training.kept_levels(20_000, 3, 0.3)
    shares = torch.bincount(kept, minlength=4) / 20_000
    assert torch.allclose(shares, torch.tensor([0.0, 0.15, 0.15, 0.7]), atol=0.02)
    assert training.kept_levels(7, 1, 0.3) is None
    assert training.kept_levels(7, 3, 0.0) is None
