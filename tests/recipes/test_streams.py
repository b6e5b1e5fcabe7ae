"""The stages over data that are read from end to end: the same codes and numbers as from a folder of images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvq.config import RunConfig
from hvq.files import read_json
from hvq.storage import load_autoencoder
from tests.data.kinds import save_parquet, save_shards
from tests.runs import LEVELS, TrainedRun, differing, numbers_of, run_recipe, tensors_below, write_config

SPLITS = {"train": 3, "validation": 2}
STREAMING = {"enabled": True, "lanes": 2, "shuffle_buffer": 11}


def _shards(images: Path) -> dict[str, Any]:
    return {"kind": "shards", **{split: save_shards(images / split, number) for split, number in SPLITS.items()}}


def _parquet(images: Path) -> dict[str, Any]:
    (images / "parquet").mkdir()
    for split, number in SPLITS.items():
        save_parquet(images / split, f"{split}-{{}}.parquet", number)
        for file in (images / split).glob("*.parquet"):
            file.rename(images / "parquet" / file.name)
    return {"kind": "hub", "name": str(images / "parquet")}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: None) -> None:
    monkeypatch.setenv("HVQ_CACHE", str(tmp_path / "cache"))


def _streamed(config: RunConfig, make: Callable[[Path], dict[str, Any]], images: Path) -> RunConfig:
    """The configuration with the same images as a stream."""
    shutil.copytree(config.data.path, images)  # type: ignore[union-attr]
    plain = config.model_dump(mode="json")
    kept = {name: plain["data"][name] for name in ("size", "channels", "augmentation")}
    return RunConfig.model_validate({**plain, "data": {**make(images), **kept, "streaming": STREAMING}})


@pytest.mark.parametrize("make", [_shards, _parquet])
def test_codes_and_numbers_are_those_of_the_folder(
    trained_run: TrainedRun, tmp_path: Path, make: Callable[[Path], dict[str, Any]]
) -> None:
    run = trained_run.copied(tmp_path / "run").run
    shutil.rmtree(run.codes)
    run.metrics_file.unlink()
    config = write_config(tmp_path / "config.json", _streamed(trained_run.config, make, tmp_path / "images"))
    for recipe in ("extract_codes", "evaluate"):
        outcome = run_recipe(recipe, "--config", config, "--run-dir", run.path)
        assert (outcome.code, outcome.err) == (0, "")
    assert differing(tensors_below(run.codes), tensors_below(trained_run.run.codes)) == []
    measured, expected = (numbers_of(read_json(r.metrics_file, "metrics")) for r in (run, trained_run.run))
    assert len(expected) > 10
    assert measured == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [_shards, _parquet])
def test_every_stage_runs_on_a_stream(
    trained_run: TrainedRun, tmp_path: Path, make: Callable[[Path], dict[str, Any]]
) -> None:
    config = write_config(tmp_path / "config.json", _streamed(trained_run.config, make, tmp_path / "images"))
    where, words = ("--run-dir", tmp_path / "run"), ["autoencoder_training.steps=3"]
    first = run_recipe("train_autoencoder", "--config", config, *where, *words)
    stages = [run_recipe("extract_codes", *where)]
    stages += [run_recipe("train_prior", *where, "--level", name, f"priors.{name}.training.steps=2") for name in LEVELS]
    stages += [run_recipe("sample", *where), run_recipe("evaluate", *where)]
    assert [(outcome.code, outcome.err) for outcome in (first, *stages)] == [(0, "")] * 6
    model, _ = load_autoencoder(tmp_path / "run" / "autoencoder")
    assert model.level_names == LEVELS
