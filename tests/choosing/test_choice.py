"""The choice as a function of numbers: what it comes to, that it always is a run, and that it keeps to the time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvq.autoencoders.build import check_autoencoder
from hvq.choosing.candidates import SIZES, Candidate, candidates
from hvq.choosing.choice import Question, choose
from hvq.choosing.chosen_run import lines
from hvq.choosing.costs import Costs, Machine
from hvq.choosing.effort import LEAST_STEPS
from hvq.choosing.survey import LEAST_IMAGES, FolderSurvey
from hvq.config import RunConfig
from hvq.config_data import FolderConfig
from hvq.errors import ConfigurationError
from tests.choosing.small import chosen, costs, survey

SECONDS = st.floats(1e-6, 1e4)


@st.composite
def surveys(draw: st.DrawFn) -> FolderSurvey:
    sides = sorted(draw(st.lists(st.integers(1, 40_000), min_size=3, max_size=3)))
    numbers = {
        "images": draw(st.integers(LEAST_IMAGES, 10_000_000)),
        "held_out": draw(st.sampled_from([0, 1, 97, 50_000])),
        "classes": draw(st.sampled_from([0, 1, 2, 10, 1_000, 90_000])),
        "unreadable": draw(st.integers(0, 3)),
    }
    flags = {name: draw(st.booleans()) for name in ("square", "colour", "photographs", "transparent")}
    return survey(smallest_side=sides[0], usual_side=sides[1], largest_side=sides[2], **numbers, **flags)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Question, dict[Candidate, Costs]]:
    folder = draw(surveys())
    machine = Machine(
        accelerated=draw(st.booleans()), processes=draw(st.sampled_from([1, 2, 3, 8])), cores=draw(st.integers(1, 64))
    )
    measured = {}
    for candidate in draw(st.sets(st.sampled_from(candidates(folder)), min_size=1, max_size=3)):
        names = candidate.level_names
        measured[candidate] = Costs(
            reading=draw(SECONDS),
            autoencoder_step=draw(SECONDS),
            encoding=draw(SECONDS),
            restoring=draw(SECONDS),
            prior_steps={name: draw(SECONDS) for name in names},
            looks={name: draw(SECONDS) for name in names},
            drawing=draw(SECONDS),
            classifier_step=draw(SECONDS),
        )
    return Question("pictures", folder, machine), measured


@settings(max_examples=60, deadline=None)
@given(questions(), st.floats(-100.0, 1e6))
def test_any_folder_and_any_seconds_give_a_run(asked: tuple[Question, dict[Candidate, Costs]], seconds: float) -> None:
    question, measured = asked
    choice = choose(question, measured, seconds)
    config = choice.config
    # As it is read again from the run folder.
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    check_autoencoder(config.autoencoder)
    assert config.data.size == (choice.candidate.size,) * 2
    trainings = [config.autoencoder_training, *(stage.training for stage in config.priors.values())]
    assert list(config.priors) == list(config.autoencoder.levels)
    for training in trainings:
        assert training.steps >= LEAST_STEPS
        assert training.batch_size % question.machine.processes == 0
    assert all(value >= 0 for value in choice.spending.values())
    assert len(choice.reasons) >= 10
    assert choose(question, measured, seconds) == choice


# Of the machine in `small`: photographs in a folder, minutes, and what is chosen of them.
CASES: dict[str, tuple[dict[str, Any], float, int, dict[str, Any]]] = {
    "a camera's, a few minutes": ({}, 3, 32, {"channels": 3, "crop": "random", "labelled": False}),
    "the same, an hour": ({}, 60, 96, {"channels": 3}),
    "grey squares": ({"colour": False, "square": True}, 10, 48, {"channels": 1, "crop": "center"}),
    "digits of 8 pixels": (
        {"colour": False, "photographs": False, "usual_side": 8, "smallest_side": 8, "largest_side": 8, "classes": 10},
        10,
        8,
        {"channels": 1, "labelled": True},
    ),
    "smaller than anything": ({"usual_side": 3, "smallest_side": 2}, 10, 8, {}),
    "between two sizes": ({"usual_side": 31}, 30, 24, {}),
    "a folder for each picture": ({"classes": 1_000}, 10, 48, {"labelled": False}),
    "one subfolder": ({"classes": 1}, 10, 48, {"labelled": False}),
    "as many as a camera ever took": ({"images": 5_000_000}, 10, 48, {"labelled": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_chosen(case: str) -> None:
    changes, minutes, size, wanted = CASES[case]
    choice, _ = chosen(survey(**changes), minutes)
    data = choice.config.data
    assert data.size == (size, size)
    assert {name: getattr(data, name) for name in wanted} == wanted
    text = "\n".join(reason.text for reason in choice.reasons)
    assert f"images of {size}x{size}" in text
    assert 0.8 * 60 * minutes < sum(choice.spending.values()) < 1.1 * 60 * minutes or "by heart" in "\n".join(
        lines(choice, minutes, spent=0)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(500, 10**6), st.floats(1.0, 30.0), st.floats(0.5, 50.0))
def test_a_run_fills_its_time_and_no_more(images: int, minutes: float, speed: float) -> None:
    choice, measured = chosen(survey(images=images), minutes, speed=speed)
    total = sum(choice.spending.values()) / (60 * minutes)
    floor = choice.config.autoencoder_training.steps == LEAST_STEPS
    assert total < 1.1 or floor
    assert total > 0.8 or "by heart" in "\n".join(lines(choice, minutes, spent=0))
    assert len(measured) <= 5


def test_more_time_gives_larger_images_up_to_those_of_the_pictures() -> None:
    sizes = [
        chosen(survey(usual_side=130, images=100_003), minutes)[0].candidate.size for minutes in (1, 5, 60, 10_000)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 64
    assert sizes[-1] == 128


def test_with_time_to_spare_the_models_become_larger() -> None:
    choice, _ = chosen(survey(usual_side=32, images=50_021), 600, speed=10)
    assert choice.candidate == Candidate(32, wide=True)
    assert choice.config.autoencoder.decoder.width == 128


def test_sizes_fit_their_strides() -> None:
    for size in SIZES:
        candidate = Candidate(size)
        grids = [candidate.grid(name) for name in candidate.level_names]
        assert size == grids[-1] * candidate.ratios[-1]
        assert all(fine == 2 * coarse for coarse, fine in pairwise(grids))


def test_few_images_have_few_codes_and_many_have_many() -> None:
    few, many = (chosen(survey(images=number), 5)[0].config.autoencoder.levels for number in (23, 200_003))
    assert [level.codebook_size for level in few.values()] == [32, 32]
    assert [level.codebook_size for level in many.values()] == [512, 512]


def test_reading_of_too_many_images_is_limited() -> None:
    data = chosen(survey(images=1_000_003), 10)[0].config.data
    assert isinstance(data, FolderConfig)
    assert data.limit is not None
    # At 3 ms for each, twice.
    assert 200 <= data.limit < 0.12 * 600 / 0.006
    unlimited = chosen(survey(images=1_009), 10)[0].config.data
    assert isinstance(unlimited, FolderConfig)
    assert unlimited.limit is None


def test_classes_that_are_too_many_to_be_drawn_are_left_out() -> None:
    folder = survey(images=1_000_003, classes=20_011)
    without, _ = chosen(folder, 5)
    assert isinstance(without.config.data, FolderConfig)
    assert not without.config.data.labelled
    assert any("to draw samples of all 20,011 subfolders" in reason.text for reason in without.reasons)
    with_all = chosen(folder, 10_000, speed=50)[0].config.data
    assert isinstance(with_all, FolderConfig)
    assert with_all.labelled


def test_what_is_set_by_hand_wins_and_has_no_reason() -> None:
    words = ("data.size=[40, 56]", "autoencoder_training.steps=17", "autoencoder.levels.top.codebook_size=43")
    choice, _ = chosen(survey(), 5, *words)
    config = choice.config
    assert (config.data.size, config.autoencoder_training.steps) == ((40, 56), 17)
    assert config.autoencoder.levels["top"].codebook_size == 43
    texts = [reason.text for reason in choice.reasons]
    assert not [text for text in texts if text.startswith(("images of", "levels of codes")) or "steps of the" in text]
    assert any(text.startswith("3 channel(s)") for text in texts)
    assert f"set by hand: {' '.join(words)}" in "\n".join(lines(choice, 5, spent=7, overrides=words))


def test_other_levels_have_priors_of_their_own() -> None:
    question = Question("pictures", survey(), Machine(), ("autoencoder.levels={coarse: {ratio: 8}, fine: {ratio: 2}}",))
    made = costs(Candidate(32))
    renamed = Costs(
        **{**vars(made), "prior_steps": {"coarse": 0.1, "fine": 0.1}, "looks": {"coarse": 0.1, "fine": 0.1}}
    )
    config = choose(question, {Candidate(32): renamed}, 300).config
    assert list(config.priors) == ["coarse", "fine"]
    assert config.prior("fine").training.steps > LEAST_STEPS


def test_what_is_wrong_by_hand_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"stesp is not a field"):
        chosen(survey(), 5, "autoencoder_training.stesp=3")


def test_a_run_that_takes_longer_than_asked_for_says_so() -> None:
    choice, _ = chosen(survey(), 0.01)
    assert "this is more than the 0.01 minutes asked for" in "\n".join(lines(choice, 0.01, spent=1))
