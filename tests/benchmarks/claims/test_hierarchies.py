"""The small hierarchy of digits, codes drawn without a prior, and what is kept of candidates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

Load = Callable[[str], ModuleType]
NUMBERS: dict[str, dict[str, float]] = {
    "images": {"accuracy": 0.95},
    "reconstructions": {"accuracy": 0.9},
    "uniform": {"accuracy": 0.1, "nats_per_image": 80.0, "copies": 0.0},
    "unigram": {"accuracy": 0.2, "nats_per_image": 70.0, "copies": 0.0},
    "by place": {"accuracy": 0.6, "nats_per_image": 60.0, "copies": 0.0},
    "pixelcnn": {"accuracy": 0.7, "nats_per_image": 50.0, "copies": 0.0},
    "transformer": {"accuracy": 0.8, "nats_per_image": 50.0, "copies": 0.0},
}
DRAWS = [{"1": {"precision": 0.5, "recall": 0.7}, "8": {"precision": 0.6, "recall": 0.6}} for _ in range(2)]


@pytest.fixture
def hierarchies(load_claim: Load) -> ModuleType:
    return load_claim("hierarchies")


@pytest.fixture
def sizes(hierarchies: ModuleType) -> Any:
    return hierarchies.Sizes(steps=3, width=8, codebook_size=7, prior_steps=3, prior_width=16)


# --- the hierarchy ---


def test_a_model_is_trained_once_and_comes_back_as_it_was(
    hierarchies: ModuleType, load_claim: Load, tmp_path: Path
) -> None:
    cells, trained = load_claim("frame").Cells, []

    def make() -> nn.Module:
        return nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)

    def train(model: nn.Module) -> None:
        trained.append(model)

    first = hierarchies.kept(cells(tmp_path / "cells.json"), {"model": "one"}, make, train)
    again = hierarchies.kept(cells(tmp_path / "cells.json"), {"model": "one"}, make, train)
    other = hierarchies.kept(cells(tmp_path / "cells.json"), {"model": "two"}, make, train)
    assert len(trained) == 2
    for model in (first, again):
        assert torch.equal(model.weight, trained[0].weight)
        assert torch.equal(model.bias, trained[0].bias)
        assert not model.training
    assert torch.equal(other.weight, trained[1].weight)


def test_a_plan_of_a_claim_does_not_change_what_weights_hang_on(
    hierarchies: ModuleType, load_claim: Load, sizes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, cells = load_claim("training").digits(), load_claim("frame").Cells()
    codes = load_claim("training").codes_of(hierarchies.digit_autoencoder(images, sizes, cells), images.train)
    assert {name: tuple(code.shape[1:]) for name, code in codes.items()} == {"top": (2, 2), "bottom": (4, 4)}
    hierarchies.digit_priors("pixelcnn", codes, images, sizes, cells)

    def not_again(*arguments: Any) -> None:
        raise AssertionError("a prior that is there was trained again")

    monkeypatch.setattr(hierarchies, "train_prior", not_again)
    names = ("steps", "width", "codebook_size", "prior_steps", "prior_width")
    plan = load_claim("priors").Plan(**{name: getattr(sizes, name) for name in names}, classifier_steps=11, seeds=(5,))
    hierarchies.digit_priors("pixelcnn", codes, images, plan, cells)


@pytest.mark.parametrize("kind", ["pixelcnn", "pixelsnail", "transformer"])
def test_nats_are_those_of_each_image_alone(hierarchies: ModuleType, sizes: Any, kind: str) -> None:
    priors = {level: hierarchies.make_prior(kind, level, sizes, 10).eval() for level in hierarchies.RATIOS}
    codes = {"top": torch.randint(0, 7, (3, 2, 2)), "bottom": torch.randint(0, 7, (3, 4, 4))}
    labels = torch.tensor([2, 5, 9])
    with torch.no_grad():
        alone = [
            codes[level][0].numel()
            * float(hierarchies.nats(prior, level, {name: code[[i]] for name, code in codes.items()}, labels[[i]]))
            for level, prior in priors.items()
            for i in range(3)
        ]
    assert hierarchies.nats_per_image(priors, codes, labels) == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_a_prior_learns_what_the_class_and_the_top_tell(hierarchies: ModuleType, sizes: Any) -> None:
    labels = torch.arange(101) % 7
    top = labels.view(-1, 1, 1).expand(-1, 2, 2)
    codes = {"top": top, "bottom": top.repeat(1, 2, 2)}
    prior = hierarchies.make_prior("transformer", "bottom", sizes, 10)
    hierarchies.train_prior(prior, "bottom", codes, labels, 60)
    with torch.no_grad():
        told = float(hierarchies.nats(prior, "bottom", codes, labels))
        other = float(hierarchies.nats(prior, "bottom", {**codes, "top": (top + 1) % 7}, labels))
    # Of codes that nothing tells, each would cost log 7.
    assert told < 0.7 * math.log(7)
    assert other > told + 0.1


# --- codes without a prior ---


def test_codes_drawn_one_by_one_follow_their_tables(load_claim: Load) -> None:
    script = load_claim("priors")
    generator = torch.Generator().manual_seed(0)
    codes, labels = torch.randint(0, 5, (11, 2, 3), generator=generator), torch.arange(11) % 3
    for way in script.UNTRAINED:
        table = script.tables(way, codes, labels, 5, 3)
        assert table.shape == (3, 2, 3, 5)
        assert torch.allclose(table.sum(dim=-1), torch.ones(3, 2, 3, dtype=torch.float64))
        wanted = torch.arange(3).repeat_interleave(4_000)
        drawn = script.draw_independently(table, wanted)
        shares = torch.stack([(drawn[wanted == 1] == code).double().mean(dim=0) for code in range(5)], dim=-1)
        assert torch.allclose(shares, table[1], atol=0.05)
        by_hand = -sum(
            math.log(table[label, i, j, codes[n, i, j]])
            for n, label in enumerate(labels.tolist())
            for i in range(2)
            for j in range(3)
        )
        assert script.nats_of_table(table, codes, labels) == pytest.approx(by_hand / 11)
    uniform = script.tables("uniform", codes, labels, 5, 3)
    assert script.nats_of_table(uniform, codes, labels) == pytest.approx(6 * math.log(5))


@pytest.mark.parametrize(
    ("part", "way", "name", "value"),
    [
        ("nothing_without_structure", "unigram", "accuracy", 0.26),
        ("trained_above_independent", "pixelcnn", "accuracy", 0.64),
        ("trained_takes_fewer_nats", "transformer", "nats_per_image", 61.0),
    ],
)
def test_each_part_of_the_criterion_of_priors_decides(
    load_claim: Load, part: str, way: str, name: str, value: float
) -> None:
    script = load_claim("priors")
    assert all(script.parts_of(NUMBERS).values())
    parts = script.parts_of({**NUMBERS, way: {**NUMBERS[way], name: value}})
    assert [each for each, holds in parts.items() if not holds] == [part]


# --- rejection ---


def test_sets_of_every_share_have_one_size_and_as_many_of_each_class(load_claim: Load) -> None:
    script = load_claim("rejection")
    labels = script.candidate_labels(3, 5)
    sure = torch.rand(len(labels), generator=torch.Generator().manual_seed(0))
    assert len(labels) == 8 * 3 * 5
    means = []
    for part in script.PARTS:
        rows = script.kept_rows(sure, labels, part, 5)
        assert torch.bincount(labels[rows]).tolist() == [5, 5, 5]
        assert int(rows.max()) < part * 15
        means.append(float(sure[rows].mean()))
    assert torch.equal(script.kept_rows(sure, labels, 1, 5), torch.arange(15))
    assert means == sorted(means)


def test_features_are_what_the_last_layer_sees(load_claim: Load) -> None:
    script = load_claim("rejection")
    images = load_claim("training").digits().held_out[:13]
    judges = script.make_judges(load_claim("training").digits(), replace(script.QUICK, classifier_steps=2))
    features = script.features_of(judges.observer, images)
    logits = judges.observer.head(features.float())
    assert torch.allclose(logits, judges.observer(images), rtol=1e-4, atol=1e-5)
    assert not torch.equal(judges.keeper.head.weight, judges.observer.head.weight)


@pytest.mark.parametrize(("part", "name", "value"), [("8", "precision", 0.5), ("8", "recall", 0.7)])
def test_the_trade_has_to_be_seen_in_every_draw(load_claim: Load, part: str, name: str, value: float) -> None:
    script = load_claim("rejection")
    assert script.verdict_of(DRAWS)
    other = {**DRAWS[1], part: {**DRAWS[1][part], name: value}}
    assert not script.verdict_of([DRAWS[0], other])
