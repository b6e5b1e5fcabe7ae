"""What a perceptual loss is told of: a classifier that an evaluation left, or LPIPS, or why neither can be had."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from hvq.config import AutoencoderTrainingConfig
from hvq.data import TensorImages
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, ConfigurationError
from hvq.evaluation.feature_distance import in_loss, load_feature_distance
from hvq.evaluation.measure_reconstruction import measure_reconstruction
from hvq.evaluation.own_classifier import OwnClassifier, load_own_classifier, own_classifier
from hvq.evaluation.pretrained import load_lpips_network
from hvq.storage import load_hierarchy
from tests.evaluation.test_pretrained import torchvision as _torchvision
from tests.runs import TrainedRun, changed

torchvision = _torchvision


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, OwnClassifier]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (13, 3, 17, 17), generator=generator, dtype=torch.uint8)
    folder = tmp_path / "classifier"
    made = own_classifier(
        folder, images, torch.arange(13) % 2, num_classes=2, steps=10, seed=0, device=torch.device("cpu")
    )
    return folder, made


def test_a_saved_classifier_is_loaded_as_it_was(saved: tuple[Path, OwnClassifier]) -> None:
    folder, made = saved
    loaded = load_own_classifier(folder)
    assert (loaded.description, loaded.name) == (made.description, made.name)
    assert not loaded.network.training
    images = torch.rand(2, 3, 17, 17) * 255
    assert torch.equal(loaded.network(images), made.network(images))


def test_its_distance_sees_what_the_classifier_sees(saved: tuple[Path, OwnClassifier]) -> None:
    folder, made = saved
    distance = load_feature_distance(str(folder), channels=3, size=(17, 17))
    assert distance.name == made.name
    seen = images = torch.rand(5, 3, 17, 17) * 2 - 1
    for layer in distance.network.children():
        seen = layer(seen)
    pooled = torch.nn.functional.adaptive_avg_pool2d(seen, 2).flatten(1)
    torch.testing.assert_close(pooled, made.network.embed((images + 1) * 127.5))
    others = (torch.rand(5, 3, 17, 17) * 2 - 1).requires_grad_()
    distances = distance(images, others)
    assert distances.shape == (5,)
    distances.sum().backward()
    assert others.grad is not None
    assert bool(others.grad.any())
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_a_classifier_of_other_images_is_refused(saved: tuple[Path, OwnClassifier]) -> None:
    with pytest.raises(ConfigurationError, match="learned from images of 3 channels, and the images have 1"):
        load_feature_distance(str(saved[0]), channels=1, size=(17, 17))


def test_what_is_no_classifier_is_refused(saved: tuple[Path, OwnClassifier], tmp_path: Path) -> None:
    folder, _ = saved
    with pytest.raises(CheckpointError, match=r"no classifier at .*nowhere"):
        load_feature_distance(str(tmp_path / "nowhere"), channels=3, size=(17, 17))
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, "channels": 0}))
    with pytest.raises(CheckpointError, match=r"config.json: channels: .*greater than 0"):
        load_own_classifier(folder)


def test_lpips_without_its_weights_says_how_to_get_them_or_do_without() -> None:
    with pytest.raises(ConfigurationError, match=r"(pip install|AlexNet).*a classifier of your own"):
        load_feature_distance("lpips", channels=3, size=(64, 64))
    with pytest.raises(ConfigurationError, match=r"at least 31 pixels per side; they have 3 and are 30x64"):
        load_feature_distance("lpips", channels=3, size=(30, 64))


def test_lpips_is_that_of_torchmetrics_and_differentiable(torchvision: Path) -> None:
    torchvision.mkdir()
    (torchvision / "alexnet-1234.pth").write_bytes(b"")
    distance = load_feature_distance("lpips", channels=1, size=(31, 37))
    images = torch.rand(2, 1, 31, 37)
    others = torch.rand(2, 1, 31, 37).requires_grad_()
    assert re.fullmatch(r"LPIPS [0-9a-f]{8} on AlexNet, by torchmetrics", distance.name)
    found = distance(images * 2 - 1, others * 2 - 1)
    expected = load_lpips_network()(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1), normalize=True)
    torch.testing.assert_close(found, expected.flatten())
    found.sum().backward()
    assert others.grad is not None
    assert bool(others.grad.any())
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_the_name_of_lpips_changes_with_its_weights(torchvision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision.mkdir()
    (torchvision / "alexnet-1234.pth").write_bytes(b"")
    network = load_lpips_network()
    monkeypatch.setattr("hvq.evaluation.feature_distance.load_lpips_network", lambda: network)
    names = [load_feature_distance("lpips", channels=3, size=(31, 37)).name]
    names.append(load_feature_distance("lpips", channels=3, size=(31, 37)).name)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1
    names.append(load_feature_distance("lpips", channels=3, size=(31, 37)).name)
    assert names[0] == names[1] != names[2]


def test_features_of_the_loss_are_known_by_their_weights_wherever_they_lie(
    saved: tuple[Path, OwnClassifier], tmp_path: Path
) -> None:
    folder, made = saved
    shutil.copytree(folder, tmp_path / "copy")
    images = torch.randint(0, 256, (13, 3, 17, 17), dtype=torch.uint8)
    own_classifier(
        tmp_path / "other", images, torch.arange(13) % 2, num_classes=2, steps=3, seed=1, device=torch.device("cpu")
    )

    def told(**extractors: Path | str) -> str:
        terms = {name: {"kind": "perceptual", "extractor": str(extractor)} for name, extractor in extractors.items()}
        return in_loss(AutoencoderTrainingConfig(reconstruction={"pixels": {"kind": "mse"}, **terms}), made)

    assert told() == told(learned="lpips", others=tmp_path / "other") == ""
    assert told(near=tmp_path / "copy", others=tmp_path / "other") == told(near=folder)
    assert told(near=folder) == "the autoencoder's own loss near is of these very features, which flatters it"
    assert told(lost=tmp_path / "nowhere").endswith("is not known: its classifier is gone")


def test_the_distance_that_the_loss_is_says_so(torchvision: Path, trained_run: TrainedRun) -> None:
    torchvision.mkdir()
    (torchvision / "alexnet-1234.pth").write_bytes(b"")
    images = TensorImages(torch.randint(0, 256, (3, 1, 32, 40), dtype=torch.uint8))
    texts = []
    for terms in ({"pixels": {"kind": "mse"}}, {"learned": {"kind": "perceptual", "extractor": "lpips"}}):
        config = changed(trained_run.config, autoencoder_training__reconstruction=terms)
        found = measure_reconstruction(config, load_hierarchy(trained_run.run), images, Reduction())
        assert found.measured.numbers["reconstruction"]["lpips"] > 0
        texts.append(found.measured.about["reconstruction.lpips"])
    assert texts[1] == f"{texts[0]}; the autoencoder's own loss learned is this very distance, which flatters it"
