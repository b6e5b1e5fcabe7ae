from __future__ import annotations

from typing import Any

import pytest
import torch

from hvq.errors import ConfigurationError, DataError, HVQError
from hvq.priors import Condition, ConditionEncoder


def encoder_of(**arguments: Any) -> ConditionEncoder:
    return ConditionEncoder(**{"channels": 5, "coarser": {"top": 7, "middle": 11}, "num_classes": 3, **arguments})


def codes() -> dict[str, torch.Tensor]:
    return {"middle": torch.randint(11, (2, 3, 4)), "top": torch.randint(7, (2, 1, 2))}


def test_everything_is_brought_to_the_grid_and_added() -> None:
    encoder = encoder_of(blocks=0, feature_channels=2, vector_size=13)
    given = codes()
    labels, features, vector = torch.tensor([2, 0]), torch.randn(2, 2, 3, 2), torch.randn(2, 13)
    found = encoder(Condition(given, labels, features, vector), 2, (6, 8))
    assert found.shape == (2, 5, 6, 8)
    for row, column in [(0, 0), (5, 7), (2, 5)]:
        expected = (
            encoder.embeddings["top"](given["top"][:, 0, column // 4, None])
            + encoder.embeddings["middle"](given["middle"][:, row // 2, column // 2, None])
            + encoder.classes(labels)
            + encoder.dense(features)[:, :, row // 2, column // 4]
            + encoder.vector(vector, 2)
        )
        assert torch.allclose(found[:, :, row, column], expected, atol=1e-6)


def test_readers_let_a_position_see_its_neighbours() -> None:
    near, far = encoder_of(blocks=1), encoder_of(blocks=0)
    given = codes()
    changed = {**given, "middle": given["middle"].clone()}
    changed["middle"][:, 1, 1] = (changed["middle"][:, 1, 1] + 1) % 11
    for encoder, fewest in [(near, 9), (far, 1)]:
        moved = encoder(Condition(given), 2, (3, 4)) != encoder(Condition(changed), 2, (3, 4))
        assert int(moved.any(dim=1)[0].sum()) >= fewest
    assert int(moved.any(dim=1)[0].sum()) == 1, "without readers, a code is seen where it stands"


def test_unknown_classes_share_one_embedding() -> None:
    encoder = encoder_of(coarser={})
    hidden, none = encoder(Condition(labels=torch.tensor([-1, -1])), 2, (1, 1)), encoder(Condition(), 2, (1, 1))
    assert torch.equal(hidden, none)
    known = [encoder(Condition(labels=torch.tensor([label])), 1, (1, 1)) for label in range(3)]
    assert all(not torch.equal(one, none[:1]) for one in known)


def test_what_is_told_is_a_class_or_a_vector() -> None:
    labels, vector = torch.tensor([-1, 2, -1]), torch.tensor([[0.0, 0.0], [torch.nan] * 2, [torch.nan] * 2])
    assert Condition().told is None
    assert Condition(labels=labels).told.tolist() == [False, True, False]
    assert Condition(vector=vector).told.tolist() == [True, False, False]
    assert Condition(labels=labels, vector=vector).told.tolist() == [True, True, False]


@pytest.mark.parametrize("labels", [[0, 3], [-2, 0]])
def test_labels_out_of_range_are_refused_with_the_range(labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"0 \.\. 2.* received"):
        encoder_of(coarser={})(Condition(labels=torch.tensor(labels)), 2, (1, 1))


def test_a_prior_without_classes_takes_none_but_unknown_ones() -> None:
    encoder = encoder_of(coarser={}, num_classes=0)
    assert encoder(Condition(labels=torch.tensor([-1])), 1, (1, 1)).shape == (1, 5, 1, 1)
    with pytest.raises(DataError, match="trained without"):
        encoder(Condition(labels=torch.tensor([0])), 1, (1, 1))


@pytest.mark.parametrize(
    ("arguments", "condition", "fault"),
    [
        ({"feature_channels": 2}, Condition(), "conditioned on a feature map; the condition has none"),
        ({}, Condition(features=torch.zeros(1, 2, 1, 1)), "the condition has a feature map; this prior was built"),
        ({}, Condition(vector=torch.zeros(1, 2)), "the condition has a vector; this prior was built without"),
        ({"vector_size": 3}, Condition(vector=torch.zeros(1, 2)), r"floating point \[1, 3\].*received .* \[1, 2\]"),
    ],
)
def test_the_condition_must_be_what_the_prior_was_built_for(
    arguments: dict[str, Any], condition: Condition, fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        encoder_of(coarser={}, **arguments)(condition, 1, (1, 1))


def test_levels_must_be_exactly_the_coarser_ones() -> None:
    given = codes()
    for others, fault in [({"top": given["top"]}, "missing middle"), ({**given, "bottom": given["top"]}, "bottom")]:
        with pytest.raises(HVQError, match=fault):
            encoder_of()(Condition(others), 2, (3, 4))


def test_grids_have_one_to_three_axes() -> None:
    with pytest.raises(ConfigurationError, match="spatial_dims must be 1, 2 or 3; received 0"):
        encoder_of(spatial_dims=0)
