"""A classifier of one's own: trained once, named by what it is and has seen, and taken again where nothing changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hvq.distributed import current_reduction
from hvq.errors import DataError
from hvq.evaluation import own_classifier as module
from hvq.evaluation.classification import fit_classifier, predict_classes
from hvq.evaluation.own_classifier import OwnClassifier, own_classifier, rotated
from tests.pickling import block_pickle
from tests.processes import run_in_processes

CPU = torch.device("cpu")


def _images(count: int = 31, size: tuple[int, int] = (11, 11)) -> tuple[Tensor, Tensor]:
    """Dark at the top: the way up can be told; bright ones are of class 1."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 150, size[0]).view(1, 1, -1, 1)
    labels = torch.arange(count) % 2
    noise = 40 * torch.rand(count, 1, *size, generator=generator)
    return (ramp + noise + 60 * labels.view(-1, 1, 1, 1)).byte(), labels


def _made(folder: Path, *, images: Tensor | None = None, labels: Tensor | None = None, **changes: int) -> OwnClassifier:
    pixels, classes = _images()
    settings = {"num_classes": 2, "steps": 20, "seed": 3, **changes}
    return own_classifier(
        folder,
        pixels if images is None else images,
        classes if labels is None else labels,
        num_classes=settings["num_classes"],
        steps=settings["steps"],
        seed=settings["seed"],
        device=CPU,
    )


def _same(one: OwnClassifier, other: OwnClassifier) -> bool:
    weights = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each training."""
    counted: list[int] = []

    def fit(images: Tensor, labels: Tensor, **settings: int) -> object:
        counted.append(len(images))
        return fit_classifier(images, labels, **settings)

    monkeypatch.setattr(module, "fit_classifier", fit)
    return counted


def test_it_is_the_classifier_of_the_accuracy_score(tmp_path: Path) -> None:
    images, labels = _images()
    made = _made(tmp_path / "classifier")
    expected = fit_classifier(images, labels, num_classes=2, steps=20, seed=3)
    assert _same(made, replace(made, network=expected))
    assert not made.network.training
    assert made.name.endswith("trained on 31 real images of 2 classes")


def test_it_is_trained_once_and_read_without_pickle(
    tmp_path: Path, fits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _made(tmp_path / "classifier")
    block_pickle(monkeypatch)
    again = _made(tmp_path / "classifier")
    assert fits == [31]
    assert _same(first, again)
    assert first.name == again.name
    description = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert (description["format_version"], description["task"], description["images"]) == (1, "classes", 31)
    assert sorted(path.name for path in (tmp_path / "classifier").iterdir()) == ["config.json", "model.safetensors"]


def test_other_data_or_settings_make_another(tmp_path: Path, fits: list[int]) -> None:
    folder = tmp_path / "classifier"
    images, labels = _images()
    names = {_made(folder).name}
    names.add(_made(folder, images=255 - images).name)
    names.add(_made(folder, labels=1 - labels).name)
    names.add(_made(folder, steps=21).name)
    names.add(_made(folder, seed=4).name)
    assert len(names) == len(fits) == 5


@pytest.mark.parametrize("fault", ["config.json", "model.safetensors"])
def test_what_is_damaged_is_made_anew(tmp_path: Path, fits: list[int], fault: str) -> None:
    folder = tmp_path / "classifier"
    first = _made(folder)
    (folder / fault).write_bytes((folder / fault).read_bytes()[:-30])
    assert _same(first, _made(folder))
    assert _same(first, _made(folder))
    assert fits == [31, 31]


def test_images_without_a_label_are_left_out(tmp_path: Path, fits: list[int]) -> None:
    labels = _images()[1].masked_fill(torch.arange(31) < 5, -1)
    assert _made(tmp_path / "classifier", labels=labels).description.images == 26
    assert fits == [26]


@pytest.mark.parametrize(("size", "turns"), [((11, 11), 4), ((11, 13), 2)])
def test_without_labels_it_learns_to_tell_rotations_and_says_so(
    tmp_path: Path, size: tuple[int, int], turns: int
) -> None:
    images, _ = _images(size=size)
    made = _made(tmp_path / "classifier", images=images, labels=torch.full((31,), -1), steps=60)
    assert made.description.task == "rotations"
    assert made.name.endswith(f"trained on 31 real images without labels, to tell {turns} rotations")
    turned, labels = rotated(_images(count=47, size=size)[0], turns=turns, seed=5)
    assert float((predict_classes(made.network, turned) == labels).double().mean()) > 0.9
    # One class is as good as none.
    alone = _made(tmp_path / "one", images=images, labels=torch.zeros(31, dtype=torch.int64), num_classes=1)
    assert alone.description.task == "rotations"


@pytest.mark.parametrize(("size", "turns"), [((7, 7), 4), ((5, 7), 2)])
def test_rotations_are_those_of_their_labels(size: tuple[int, int], turns: int) -> None:
    images = torch.randint(0, 256, (41, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    turned, labels = rotated(images, turns=turns, seed=0)
    assert labels.unique().tolist() == list(range(turns))
    for image, other, label in zip(images, turned, labels.tolist(), strict=True):
        expected = image
        for _ in range(label * 4 // turns):
            # A quarter turn: what was the last column becomes the first row.
            expected = expected.flip(2).transpose(1, 2)
        assert torch.equal(other, expected)
    assert torch.equal(rotated(images[:5], turns=turns, seed=0)[1], labels[:5])


def test_refuses_images_that_are_too_small(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8x8"):
        _made(tmp_path / "classifier", images=_images(size=(7, 11))[0])
    assert not (tmp_path / "classifier").exists()


def _made_in_group(folder: str) -> tuple[str, list[int], float]:
    torch.set_num_threads(1)
    counted: list[int] = []
    original = module.fit_classifier

    def fit(images: Tensor, labels: Tensor, **settings: int) -> object:
        counted.append(len(images))
        return original(images, labels, **settings)

    module.fit_classifier = fit  # type: ignore[assignment]
    images, labels = _images()
    made = own_classifier(
        Path(folder), images, labels, num_classes=2, steps=20, seed=3, device=CPU, reduction=current_reduction()
    )
    return made.name, counted, float(made.network(images).double().sum())


@pytest.mark.processes
def test_one_process_trains_for_all(tmp_path: Path) -> None:
    (name, counted, total), other = run_in_processes(_made_in_group, 2, str(tmp_path / "classifier"))
    assert counted == [31]
    assert other == (name, [], total)
