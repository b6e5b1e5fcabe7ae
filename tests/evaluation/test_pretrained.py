"""Pretrained networks: taken where packages and weights are there, named with the way to them where not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hvq.evaluation import pretrained
from hvq.evaluation.perceptual import PerceptualDistance
from hvq.evaluation.pretrained import WeightsMissing, load_inception_network, load_lpips_network


def _alexnet(weights: Any = None) -> Any:
    """The layers of torchvision's AlexNet that LPIPS takes, with random weights."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1)]
    layers += [nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)]
    return SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A torchvision that has AlexNet alone; its weights are wanted in the folder that is returned."""
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(url="https://example.invalid/models/alexnet-1234.pth"))
    models.AlexNet_Weights, models.alexnet = weights, _alexnet  # type: ignore[attr-defined]
    package.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_the_network_of_torchmetrics_is_taken_where_its_weights_are(torchvision: Path) -> None:
    torchvision.mkdir()
    (torchvision / "alexnet-1234.pth").write_bytes(b"")
    network = load_lpips_network()
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand(2, 7, 3, 31, 37, generator=generator)
    distance = PerceptualDistance(network)
    distance.update(images, others)
    # Equation (1) by hand, in float64.
    features = _alexnet().features.double().requires_grad_(False)
    shift, scale = (
        torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1),
        torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1),
    )
    seen = [(2 * pixels.double() - 1 - shift) / scale for pixels in (images, others)]
    expected, layer = torch.zeros(7, dtype=torch.float64), 0
    for number, module in enumerate(features[:12]):
        seen = [module(values) for values in seen]
        if number in (1, 4, 7, 9, 11):
            unit = [values / (values.square().sum(1, keepdim=True) + 1e-8).sqrt() for values in seen]
            weights = dict(network.named_parameters())[f"lin{layer}.model.1.weight"].double()
            expected += (weights * (unit[0] - unit[1]).square()).sum(1).mean((1, 2))
            layer += 1
    assert layer == 5
    assert distance.compute().lpips == pytest.approx(float(expected.mean()), rel=1e-4)
    assert distance.compute().lpips > 0
    assert not network.training


def test_without_weights_they_are_named_and_nothing_is_fetched(torchvision: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"alexnet-1234.pth: torchvision.models.alexnet\(weights='DEFAULT'\)"):
        load_lpips_network()


def test_without_the_packages_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "torchvision.models", "torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(WeightsMissing, match="package torchvision, which is not installed"):
        load_lpips_network()
    with pytest.raises(WeightsMissing, match="package torch-fidelity, which is not installed"):
        load_inception_network()


def test_a_package_that_fails_as_it_is_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(pretrained, "import_module", fail)
    with pytest.raises(WeightsMissing, match=r"by torchvision: operator torchvision::nms does not exist$"):
        load_lpips_network()


def test_weights_of_others_are_read_as_tensors_alone(tmp_path: Path) -> None:
    torch.save({"weights": nn.Linear(2, 3)}, tmp_path / "model.pth")
    with pytest.raises(Exception, match=r"[Ww]eights_only"), pretrained._tensors_only():
        torch.load(tmp_path / "model.pth", weights_only=False)
    assert isinstance(torch.load(tmp_path / "model.pth", weights_only=False)["weights"], nn.Linear)
