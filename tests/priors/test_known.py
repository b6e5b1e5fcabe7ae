"""Codes that are known: whole levels that are given, and positions that in-painting keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from hvq.errors import DataError
from hvq.priors import Condition, Prior, SamplingOptions, sample_hierarchy, sample_level
from hvq.priors.drawing import draw, gumbel_noise
from hvq.priors.known import check_codes, check_fixed, flat_fixed
from tests.priors.small import GRIDS, KINDS, LEVELS, SIZES, coarser_than, codes_of, condition_of, small_prior

every_kind = pytest.mark.parametrize("kind", KINDS)
LABELS = [2, -1, 0, 1, 1]


@pytest.fixture(scope="module")
def priors() -> dict[str, Prior]:
    torch.manual_seed(0)
    return {level: small_prior(level).double() for level in LEVELS}


@pytest.fixture(scope="module")
def straight(priors: dict[str, Prior]) -> dict[str, Tensor]:
    return sample_hierarchy(priors, GRIDS, samples=range(5), labels=LABELS, seed=1, chunk_size=2)


def sampled(priors: dict[str, Prior], **arguments: Any) -> dict[str, Tensor]:
    request = {"samples": range(5), "labels": LABELS, "seed": 1, "chunk_size": 2, **arguments}
    return sample_hierarchy(priors, request.pop("grids", GRIDS), **request)


# --- whole levels ---


@pytest.mark.parametrize("names", [("top",), ("top", "middle"), ("middle",), ("bottom", "top"), LEVELS])
def test_given_levels_are_taken_and_the_rest_is_that_of_the_straight_run(
    priors: dict[str, Prior], straight: dict[str, Tensor], names: tuple[str, ...]
) -> None:
    drawn: list[str] = []
    given = {name: straight[name].to(torch.int16) for name in names}
    found = sampled(priors, given=given, after_level=lambda name, _: drawn.append(name))
    assert tuple(found) == LEVELS
    assert drawn == [level for level in LEVELS if level not in names]
    for level in LEVELS:
        assert found[level].dtype == torch.int64
        assert torch.equal(found[level], straight[level])


@torch.no_grad()
def test_finer_levels_are_drawn_given_other_codes_that_are_given(priors: dict[str, Prior]) -> None:
    top = codes_of("top", 5)
    found = sampled(priors, given={"top": top})
    condition = Condition({"top": top}, torch.tensor(LABELS))
    expected = sample_level(priors["middle"], condition, GRIDS["middle"], level="middle", samples=range(5), seed=1)
    assert torch.equal(found["top"], top)
    assert torch.equal(found["middle"], expected)


def test_a_given_level_needs_no_prior(priors: dict[str, Prior], straight: dict[str, Tensor]) -> None:
    finest = {"bottom": priors["bottom"]}
    found = sampled(finest, given={"middle": straight["middle"], "top": straight["top"]})
    assert tuple(found) == LEVELS
    assert torch.equal(found["bottom"], straight["bottom"])
    others = sampled({}, given=straight)
    assert all(torch.equal(others[level], straight[level]) for level in LEVELS)


def test_a_given_level_may_have_several_codes_per_position() -> None:
    several = {"coarser_codes_per_position": {"top": 3}}
    priors = {
        "top": small_prior(codes_per_position=3).double(),
        "middle": small_prior("middle", **several).double(),
    }
    grids = {name: GRIDS[name] for name in priors}
    straight = sample_hierarchy(priors, grids, samples=range(3), chunk_size=2)
    assert straight["top"].shape == (3, *GRIDS["top"], 3)
    for with_prior in (True, False):
        known = priors if with_prior else {"middle": priors["middle"]}
        found = sample_hierarchy(known, grids, samples=range(3), chunk_size=2, given={"top": straight["top"]})
        assert torch.equal(found["middle"], straight["middle"])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"botom": codes_of("bottom", 5)}, "given names botom; the levels are top, middle, bottom"),
        (
            {"top": codes_of("top", 4)},
            r"given codes of level top must be integers \[5, 2, 3\].* received .*\[4, 2, 3\]",
        ),
        ({"top": codes_of("top", 5)[:, :1]}, r"must be integers \[5, 2, 3\].* received torch.int64 \[5, 1, 3\]"),
        ({"top": codes_of("top", 5).float()}, r"must be integers .* received torch.float32 \[5, 2, 3\]"),
        ({"top": codes_of("top", 5) > 2}, "must be integers .* received torch.bool"),
        ({"top": codes_of("top", 5) + 7}, r"given codes of level top must be in 0 \.\. 6; received"),
        ({"top": codes_of("top", 5) - 9}, r"must be in 0 \.\. 6; received -9"),
    ],
)
def test_given_codes_that_do_not_fit_are_refused(
    priors: dict[str, Prior], given: dict[str, Tensor], fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        sampled(priors, given=given)


def test_a_level_whose_condition_is_not_met_is_refused(priors: dict[str, Prior]) -> None:
    without_top = {name: priors[name] for name in ("middle", "bottom")}
    grids = {name: GRIDS[name] for name in ("middle", "bottom")}
    with pytest.raises(DataError, match="level middle is drawn given top; missing top: pass a prior for each, or its"):
        sampled(without_top, grids=grids)
    with pytest.raises(DataError, match="level bottom is drawn given top, middle; missing top"):
        sampled(without_top, grids=grids, given={"middle": codes_of("middle", 5)})


def test_the_range_of_codes_without_a_prior_is_that_of_the_priors_that_read_them(priors: dict[str, Prior]) -> None:
    bottom = {"bottom": priors["bottom"]}
    given = {"top": codes_of("top", 5), "middle": codes_of("middle", 5) + 11}
    with pytest.raises(DataError, match=r"given codes of level middle must be in 0 \.\. 10; received"):
        sampled(bottom, given=given)
    with pytest.raises(DataError, match="given codes of level top must be at least 0; received -"):
        sampled({}, grids={"top": GRIDS["top"]}, given={"top": codes_of("top", 5) - 9})


# --- positions of a level ---


@torch.no_grad()
def naive_inpainting(
    prior: Prior, condition: Condition, level: str, codes: Tensor, mask: Tensor, options: SamplingOptions
) -> Tensor:
    """A whole forward for every code that is not kept."""
    batch, several = len(codes), prior.codes_per_position
    flat = codes.clone().view(batch, -1)
    for position in range(flat.shape[1]):
        logits = prior(flat.view(codes.shape), condition).reshape(batch, -1, prior.codebook_size)[:, position]
        drawn = draw(logits, gumbel_noise(2, range(batch), level, position, prior.codebook_size), options)
        kept = mask.view(batch, -1)[:, position // several]
        flat[:, position] = torch.where(kept, flat[:, position], drawn)
    return flat.view(codes.shape)


@every_kind
@pytest.mark.parametrize("codes_per_position", [1, 3])
@torch.no_grad()
def test_fixed_codes_are_kept_and_later_ones_are_drawn_given_them(kind: str, codes_per_position: int) -> None:
    prior = small_prior("middle", kind, codes_per_position=codes_per_position).double()
    condition, several = condition_of("middle", 3), (codes_per_position,) * (codes_per_position > 1)
    codes = torch.randint(SIZES["middle"], (3, *GRIDS["middle"], *several))
    mask = torch.rand(3, *GRIDS["middle"]) < 0.5
    found = sample_level(
        prior, condition, GRIDS["middle"], level="middle", samples=range(3), seed=2, fixed=(codes, mask)
    )
    assert torch.equal(found[mask], codes[mask])
    assert torch.equal(found, naive_inpainting(prior, condition, "middle", codes, mask, SamplingOptions()))
    assert not torch.equal(found, codes)


@settings(max_examples=15)
@hypothesis_given(data=st.data(), guidance=st.sampled_from([1.0, 2.0]))
def test_any_mask_keeps_its_codes_exactly_and_concerns_its_sample_alone(data: st.DataObject, guidance: float) -> None:
    torch.manual_seed(0)
    levels, grid = ("top", "middle"), (1, 3)
    priors = {level: small_prior(level, layers=1).double() for level in levels}
    fixed = {}
    for level in data.draw(st.sets(st.sampled_from(levels))):
        bits = data.draw(st.lists(st.booleans(), min_size=15, max_size=15))
        fixed[level] = (codes_of(level, 5, grid).to(torch.int32), torch.tensor(bits).view(5, *grid))
    shared = {
        "grids": dict.fromkeys(levels, grid),
        "options": dict.fromkeys(levels, SamplingOptions(guidance=guidance)),
    }
    found = sampled(priors, fixed=fixed, **shared)
    for level, (codes, mask) in fixed.items():
        assert torch.equal(found[level][mask], codes[mask].long())
    row = data.draw(st.integers(0, 4))
    part = {name: (codes[row : row + 1], mask[row : row + 1]) for name, (codes, mask) in fixed.items()}
    alone = sampled(priors, samples=[row], labels=[LABELS[row]], chunk_size=1, fixed=part, **shared)
    assert all(torch.equal(alone[level][0], found[level][row]) for level in levels)


def test_all_fixed_is_the_input_and_none_fixed_the_straight_run(
    priors: dict[str, Prior], straight: dict[str, Tensor]
) -> None:
    codes = {level: codes_of(level, 5) for level in LEVELS}
    everything = {level: (code, torch.ones(5, *GRIDS[level], dtype=torch.bool)) for level, code in codes.items()}
    found = sampled(priors, fixed=everything)
    assert all(torch.equal(found[level], codes[level]) for level in LEVELS)
    # What is not kept may be anything, such as -1 where nothing is known.
    nothing = {
        level: (torch.full_like(code, -1), torch.zeros(5, *GRIDS[level], dtype=torch.bool))
        for level, code in codes.items()
    }
    found = sampled(priors, fixed=nothing)
    assert all(torch.equal(found[level], straight[level]) for level in LEVELS)


def test_a_fixed_part_of_a_coarse_level_reaches_the_finer_ones(
    priors: dict[str, Prior], straight: dict[str, Tensor]
) -> None:
    mask = torch.zeros(5, *GRIDS["top"], dtype=torch.bool)
    mask[:, 0, 0] = True
    other = (straight["top"] + 1) % SIZES["top"]
    found = sampled(priors, fixed={"top": (other, mask)})
    condition = Condition({name: found[name] for name in coarser_than("bottom")}, torch.tensor(LABELS))
    expected = sample_level(priors["bottom"], condition, GRIDS["bottom"], level="bottom", samples=range(5), seed=1)
    assert torch.equal(found["bottom"], expected)
    assert not torch.equal(found["bottom"], straight["bottom"])


ALL_TOP = torch.ones(5, 2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("fixed", "given", "fault"),
    [
        ({"botom": (codes_of("top", 5), ALL_TOP)}, {}, "fixed names botom; the levels are top, middle, bottom"),
        (
            {"top": (codes_of("top", 5), ALL_TOP.long())},
            {},
            r"mask of fixed codes of level top must be bool \[5, 2, 3\]",
        ),
        ({"top": (codes_of("top", 5), ALL_TOP[:, 0])}, {}, r"must be bool \[5, 2, 3\].* received torch.bool \[5, 3\]"),
        ({"top": (codes_of("top", 4), ALL_TOP)}, {}, r"fixed codes of level top must be integers \[5, 2, 3\]"),
        ({"top": (codes_of("top", 5).double(), ALL_TOP)}, {}, "must be integers .* received torch.float64"),
        ({"top": (codes_of("top", 5) + 7, ALL_TOP)}, {}, r"fixed codes of level top must be in 0 \.\. 6; received"),
        (
            {"top": (codes_of("top", 5), ALL_TOP)},
            {"top": codes_of("top", 5)},
            "level top is given as a whole and fixed in part; pass one of the two",
        ),
    ],
)
def test_fixed_codes_that_do_not_fit_are_refused(
    priors: dict[str, Prior], fixed: dict[str, Any], given: dict[str, Tensor], fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        sampled(priors, fixed=fixed, given=given)


def test_checks_of_one_level() -> None:
    check_codes(torch.zeros(0, 2, 3, dtype=torch.uint8), "codes", shape=(0, 2, 3), codebook_size=7)
    codes, mask = torch.tensor([[[1, -5]]]), torch.tensor([[[True, False]]])
    check_fixed((codes, mask), "codes", shape=(1, 1, 2), axes=2, codebook_size=7)
    with pytest.raises(DataError, match=r"codes must be in 0 \.\. 6; received -5 \.\. -5"):
        check_fixed((codes, ~mask), "codes", shape=(1, 1, 2), axes=2, codebook_size=7)


def test_a_mask_counts_for_all_codes_of_a_position() -> None:
    codes = torch.arange(12).view(1, 2, 2, 3)
    mask = torch.tensor([[[True, False], [False, True]]])
    flat, each = flat_fixed((codes, mask), codes_per_position=3, device=torch.device("cpu"))
    assert flat[each].tolist() == [0, 1, 2, 9, 10, 11]
