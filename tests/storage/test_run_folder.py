"""The folder of a run keeps its configuration and gathers its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hvq.errors import CheckpointError
from hvq.storage import RunFolder
from tests.runs import changed, tiny_config


def test_the_configuration_comes_back(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path / "run"), changed(tiny_config(tmp_path), seed=19)
    run.save_config(config)
    assert run.load_config() == config


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no run configuration at"),
        ("[]", "must be a JSON object"),
        ("{", "cannot be read"),
        ('{"seed": -1}', "run configuration at .*: seed: "),
    ],
)
def test_a_configuration_that_is_none(tmp_path: Path, content: str | None, sentence: str) -> None:
    run = RunFolder(tmp_path)
    if content is not None:
        run.config_file.write_text(content)
    with pytest.raises(CheckpointError, match=sentence):
        run.load_config()


def test_an_evaluation_replaces_the_one_before_and_keeps_the_seconds_of_stages(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.metrics() == {}
    run.write_metrics({"levels": {"top": {"usage": 0.5}}, "classification_accuracy_score": {"real": 1.0}})
    run.add_seconds("codes", 2)
    replaced = run.write_metrics({"levels": {"top": {"usage": 0.75}}})
    expected = {"levels": {"top": {"usage": 0.75}}, "seconds": {"codes": 2}}
    assert replaced == run.metrics() == expected
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == expected


def test_a_stage_leaves_its_seconds(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.timed("codes"):
        pass
    with run.timed("other process", write=False):
        pass
    assert list(run.metrics()["seconds"]) == ["codes"]
    assert 0 <= run.metrics()["seconds"]["codes"] < 5


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyError), run.timed("codes"):
        raise KeyError
    assert not run.path.exists()


def test_lines_of_training(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.lines() == []
    run.metrics_lines.write_text('{"stage": "autoencoder", "step": 1}\n{"stage": "autoencoder", "step": 2}\n')
    assert [row["step"] for row in run.lines()] == [1, 2]


def test_stages_have_places_of_their_own(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    places = [run.autoencoder, run.codes, run.samples, run.prior("top"), run.prior("bottom"), run.checkpoint("top")]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(tmp_path) for place in places)
