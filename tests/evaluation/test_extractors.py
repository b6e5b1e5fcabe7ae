"""Extractors: what they see, what they call themselves, and that Inception is taken where its weights are."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from hvq.evaluation.extractors import ClassifierExtractor, InceptionExtractor
from hvq.evaluation.own_classifier import own_classifier
from hvq.evaluation.pretrained import WeightsMissing, load_inception_network


def _images(channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (13, channels, 11, 11), generator=generator, dtype=torch.uint8)


def _extractor(folder: Path, labels: Tensor, num_classes: int) -> ClassifierExtractor:
    return ClassifierExtractor(
        own_classifier(folder, _images(), labels, num_classes=num_classes, steps=2, seed=0, device=torch.device("cpu"))
    )


def test_a_classifier_sees_what_its_head_sees(tmp_path: Path) -> None:
    extractor = _extractor(tmp_path, torch.arange(13) % 3, 3)
    seen, network = extractor(_images()), extractor.classifier.network
    assert torch.equal(seen.features, network.features(_images().float() / 127.5 - 1))
    torch.testing.assert_close(seen.probabilities, network(_images()).double().softmax(1))
    assert not seen.features.requires_grad
    assert extractor.kind == "classifier"
    assert "trained on 13 real images of 3 classes" in extractor.name


def test_a_classifier_of_rotations_knows_no_classes(tmp_path: Path) -> None:
    extractor = _extractor(tmp_path, torch.full((13,), -1), 0)
    assert extractor(_images()).probabilities.shape == (13, 0)
    assert extractor.kind == "rotations"
    assert "without labels, to tell 4 rotations" in extractor.name


class _Inception(nn.Module):
    """Has the signature of torch-fidelity's, and a feature for each thing that it is given."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        self.asked = (name, features_list)
        self.scale = torch.load(feature_extractor_weights_path)["scale"]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        means = images.float().mean((2, 3))
        return means * self.scale, means / 100


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    package, inception = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    inception.URL_INCEPTION_V3 = "https://example.invalid/weights-6726825d.pth"  # type: ignore[attr-defined]
    inception.FeatureExtractorInceptionV3 = _Inception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", inception)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "weights-6726825d.pth"


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_is_that_of_torch_fidelity_where_its_weights_are(torch_fidelity: Path, channels: int) -> None:
    torch.save({"scale": torch.tensor(0.5)}, torch_fidelity)
    network = load_inception_network()
    assert network.asked == ("inception-v3-compat", ["2048", "logits_unbiased"])
    assert not network.training
    extractor = InceptionExtractor(network)
    means = _images(channels).float().mean((2, 3)).expand(-1, 3)
    seen = extractor(_images(channels))
    torch.testing.assert_close(seen.features, means / 2)
    torch.testing.assert_close(seen.probabilities, (means / 100).double().softmax(1))
    assert extractor.kind == "inception"


def test_inception_without_or_with_damaged_weights_is_named(torch_fidelity: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"weights of Inception are not at .*weights-6726825d.pth"):
        load_inception_network()
    torch_fidelity.write_bytes(b"no weights")
    with pytest.raises(WeightsMissing, match="Inception cannot be loaded, by torch-fidelity: "):
        load_inception_network()
