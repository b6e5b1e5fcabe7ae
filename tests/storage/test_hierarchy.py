"""What a run folder holds is loaded together, and only what belongs together."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hvq.errors import CheckpointError
from hvq.priors import SamplingOptions, sample_hierarchy
from hvq.storage import load_hierarchy
from tests.runs import CLASSES, TrainedRun


def _edit_prior(run: TrainedRun, level: str, **changes: Any) -> None:
    path = run.run.prior(level) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_run(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    assert hierarchy.autoencoder.level_names == tuple(hierarchy.priors) == ("top", "bottom")
    assert hierarchy.grids == {"top": (2, 2), "bottom": (4, 4)}
    assert (hierarchy.image_size, hierarchy.channels, hierarchy.classes) == ((16, 16), 1, CLASSES)
    assert not any(model.training for model in (hierarchy.autoencoder, *hierarchy.priors.values()))
    assert hierarchy.to("cpu") is hierarchy


def test_priors_may_be_missing(copied_run: TrainedRun) -> None:
    shutil.rmtree(copied_run.run.prior("top"))
    assert list(load_hierarchy(copied_run.run).priors) == ["bottom"]
    shutil.rmtree(copied_run.run.path / "priors")
    assert load_hierarchy(copied_run.run).priors == {}


def test_a_prior_is_sampled_as_it_was_saved(copied_run: TrainedRun) -> None:
    _edit_prior(copied_run, "bottom", sampling={"temperature": 0.5, "top_k": 3, "top_p": 0.75})
    assert load_hierarchy(copied_run.run).options == {
        "top": SamplingOptions(),
        "bottom": SamplingOptions(temperature=0.5, top_k=3, top_p=0.75),
    }


def test_a_prior_of_another_autoencoder_is_refused(copied_run: TrainedRun) -> None:
    file = copied_run.run.autoencoder / "model.safetensors"
    tensors = load_file(file)
    tensors["levels.bottom.quantizer.head_codebooks.0.vectors"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"priors/top was trained on codes of another autoencoder; extract codes"):
        load_hierarchy(copied_run.run)


def test_another_image_decoder_makes_no_other_codes(copied_run: TrainedRun) -> None:
    file = copied_run.run.autoencoder / "model.safetensors"
    tensors = load_file(file)
    tensors["decoder.0.bias"] += 1
    save_file(tensors, file)
    assert len(load_hierarchy(copied_run.run).priors) == 2


def test_a_prior_in_the_place_of_another_is_refused(copied_run: TrainedRun) -> None:
    run = copied_run.run
    shutil.rmtree(run.prior("top"))
    shutil.copytree(run.prior("bottom"), run.prior("top"))
    with pytest.raises(CheckpointError, match=r"must be of level top on a grid of 2x2.*is of level bottom on 4x4"):
        load_hierarchy(run)


def test_a_prior_of_another_size_is_refused(copied_run: TrainedRun) -> None:
    _edit_prior(copied_run, "bottom", grid=[4, 5])
    with pytest.raises(CheckpointError, match=r"on a grid of 4x4, .*of level bottom on 4x5: extract codes"):
        load_hierarchy(copied_run.run)


def test_a_run_without_an_autoencoder(copied_run: TrainedRun) -> None:
    shutil.rmtree(copied_run.run.autoencoder)
    with pytest.raises(CheckpointError, match=r"no autoencoder in .*: train it first, or check the path"):
        load_hierarchy(copied_run.run)


def test_priors_take_another_precision_and_the_autoencoder_does_not(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run).to("cpu", prior_precision="bfloat16")
    assert {p.dtype for prior in hierarchy.priors.values() for p in prior.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in hierarchy.autoencoder.parameters()} == {torch.float32}
    assert {p.dtype for prior in hierarchy.to("cpu").priors.values() for p in prior.parameters()} == {torch.bfloat16}
    assert hierarchy.with_prior_precision("bfloat16").priors["top"] is hierarchy.priors["top"]
    codes = sample_hierarchy(hierarchy.priors, hierarchy.grids, samples=[0, 1, 2], chunk_size=3)
    assert codes["bottom"].shape == (3, 4, 4)
