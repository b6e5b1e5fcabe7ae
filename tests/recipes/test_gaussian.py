"""The preset of a plain VAE by its command lines: what it can do, and the sentence where it would take codes."""

from __future__ import annotations

import math
from pathlib import Path

from hvq.storage import RunFolder, load_autoencoder
from tests.runs import RECIPES, run_recipe

FEW = [
    "data.size=[16, 16]",
    "autoencoder.levels.top.width=8",
    "autoencoder.decoder.width=8",
    "autoencoder_training.steps=3",
    "autoencoder_training.warmup_steps=0",
    "autoencoder_training.log_every=1",
]


def test_a_plain_vae_trains_and_is_measured_and_codes_are_refused(tmp_path: Path) -> None:
    run, where = RunFolder(tmp_path / "run"), ("--run-dir", tmp_path / "run")
    preset = RECIPES / "configs" / "digits-vae.yaml"
    outcomes = [run_recipe("train_autoencoder", "--config", preset, *where, *FEW), run_recipe("evaluate", *where)]
    assert [(outcome.code, outcome.err) for outcome in outcomes] == [(0, "")] * 2
    assert not load_autoencoder(run.autoencoder)[0].quantizers["top"].discrete
    lines = [line for line in run.lines() if "kl" in line]
    assert len(lines) == 3
    assert all(math.isfinite(line["kl"]) and "usage.top" not in line for line in lines)
    level = run.metrics()["levels"]["top"]
    assert level.keys() == {"absent_mse", "absent_stand_in"}
    assert level["absent_stand_in"] == "mean of the prior"
    assert "2x2 Gaussian latents of 16" in run.report.read_text()
    for recipe in ("extract_codes", "train_prior", "sample"):
        refused = run_recipe(recipe, *where)
        assert refused.code == 1
        assert "level top has none but the means of a gaussian bottleneck" in refused.err
        assert refused.err.count("\n") == 1
