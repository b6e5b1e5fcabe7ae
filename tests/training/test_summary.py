"""What a person is told of a training, against counts of another kind."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import AutoencoderConfig, OptimizationConfig, RunConfig
from hvq.data import CodeFolder
from hvq.storage import RunFolder, load_prior
from hvq.training.summary import autoencoder_summary, learned_numbers, level_sizes, outcome, prior_summary
from tests.runs import TrainedRun

LEVEL = {"width": 11, "residual_blocks": 1, "residual_width": 5}
TRAINING = OptimizationConfig(steps=1_009, batch_size=13)


def _autoencoder(decoder: str = "context", **top: Any) -> Autoencoder:
    levels = {
        "top": {**LEVEL, "ratio": 2, "codebook_size": 17, "code_dimension": 7, **top},
        "bottom": {**LEVEL, "ratio": 4, "codebook_size": 19, "code_dimension": 3},
    }
    described = {"channels": 3, "levels": levels, "decoder": {**LEVEL, "sees": decoder}, "level_dropout": 0.1}
    return build_autoencoder(AutoencoderConfig.model_validate(described))


def _numel(model: Autoencoder, *beginnings: str) -> int:
    """Of the parameters whose names begin so."""
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(beginnings))


@pytest.mark.parametrize("decoder", ["context", "vectors"])
def test_parameters_by_part_are_those_of_their_names(decoder: str) -> None:
    model = _autoencoder(decoder)
    sizes = level_sizes(model, (37, 41))
    for name, codebook in (("top", 17 * 7), ("bottom", 19 * 3)):
        size, where = sizes[name], f"levels.{name}"
        assert size.encoder == _numel(model, f"{where}.encoder", f"{where}.projection")
        assert size.decoder == _numel(model, f"{where}.merge", f"{where}.absent", f"enlargements.{name}")
        # Taught by moving averages, a codebook is no parameter.
        assert size.quantizer == codebook
    assert learned_numbers(model) == sum(p.numel() for p in model.parameters()) + 17 * 7 + 19 * 3


@pytest.mark.parametrize(
    ("quantizer", "learned"),
    [
        ({"kind": "vector", "learning": "gradient"}, 17 * 7),
        ({"kind": "vector", "projection_dimension": 2}, 17 * 2 + (7 * 2 + 2) + (2 * 7 + 7)),
        ({"kind": "residual", "num_quantizers": 3}, 3 * 17 * 7),
        ({"kind": "residual", "num_quantizers": 3, "shared": True}, 17 * 7),
        ({"kind": "sim"}, 7 * 7),
        ({"kind": "gumbel"}, 17 * 7 + 17 * 7 + 17),
    ],
)
def test_what_kinds_of_quantizers_learn(quantizer: dict[str, Any], learned: int) -> None:
    assert level_sizes(_autoencoder(quantizer=quantizer), (40, 40))["top"].quantizer == learned


@pytest.mark.parametrize("each", [1, 3])
def test_codes_and_bits_are_those_that_an_image_has(each: int) -> None:
    model = _autoencoder(quantizer={"kind": "residual", "num_quantizers": 3} if each == 3 else {"kind": "vector"})
    sizes, codes = level_sizes(model, (37, 41)), model.encode(torch.zeros(1, 3, 37, 41))
    assert {name: size.codes for name, size in sizes.items()} == {name: code.numel() for name, code in codes.items()}
    assert sizes["top"].bits == pytest.approx(5 * 6 * each * math.log(17, 2))
    said = autoencoder_summary(model, (37, 41), 3, TRAINING, images=1_013)
    bits = 30 * each * math.log(17, 2) + 120 * math.log(19, 2)
    raw = 37 * 41 * 3 * 8
    assert f"{30 * each + 120} codes, {bits:,.0f} bits, for the {raw:,} bits of an image, {raw / bits:.1f} t" in said
    assert "1,009 steps of 13 images, 12.9 times through all of them" in said


@pytest.mark.parametrize(("size", "what", "codes"), [((37,), "signal", 5 + 10), ((9, 11, 13), "volume", 8 + 64)])
def test_signals_and_volumes_are_called_so_and_count_16_bits_a_value(
    size: tuple[int, ...], what: str, codes: int
) -> None:
    levels = {
        "top": {**LEVEL, "ratio": 2, "codebook_size": 16, "code_dimension": 7},
        "bottom": {**LEVEL, "ratio": 4, "codebook_size": 16, "code_dimension": 3},
    }
    described = {"channels": 3, "levels": levels, "decoder": LEVEL, "spatial_dims": len(size)}
    model = build_autoencoder(AutoencoderConfig.model_validate(described))
    said = autoencoder_summary(model, size, 3, TRAINING, images=1_013)
    raw = math.prod(size) * 3 * 16
    assert f"{codes} codes, {4 * codes} bits, for the {raw:,} bits of a {what} of 16-bit values, " in said
    assert f"1,009 steps of 13 {what}s" in said


def test_the_table_adds_up_and_is_aligned() -> None:
    model = _autoencoder()
    *table, total, _ = autoencoder_summary(model, (37, 41), 3, TRAINING, images=1_013).splitlines()
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0] for line in table] == ["level", "top", "bottom", "image"]
    numbers = [int(cell.replace(",", "")) for line in table[1:] for cell in line.split()[1:4] if cell != "-"]
    assert sum(numbers) == learned_numbers(model)
    assert f"{learned_numbers(model):,} parameters" in total


def test_a_gaussian_level_has_no_bits() -> None:
    model = _autoencoder(quantizer={"kind": "gaussian"})
    sizes = level_sizes(model, (40, 40))
    assert (sizes["top"].codes, sizes["top"].bits) == (None, None)
    said = autoencoder_summary(model, (40, 40), 3, TRAINING, images=7)
    assert re.search(r"^ +top .* 5x5 +- +- +-$", said, flags=re.MULTILINE)
    assert "an image has 38,400 bits, and a gaussian level has no codes" in said


def test_a_prior_is_told_by_its_parameters_and_the_codes_that_it_predicts(trained_run: TrainedRun) -> None:
    run = trained_run.run
    prior, _ = load_prior(run.prior("bottom"))
    codes = CodeFolder(run.codes, "train")
    said = prior_summary(prior, codes, "bottom", TRAINING)
    parameters = sum(p.numel() for p in prior.parameters())
    counts = codes.counts("bottom")[0].double()
    shares = counts[counts > 0] / counts.sum()
    entropy = -float((shares * shares.log()).sum())
    assert f"{parameters:,} parameters; 16 codes per image (4x4), K 13" in said
    assert f"log K {math.log(13):.3f}, unigram entropy {entropy:.3f}" in said
    # Images are encoded twice.
    assert f"1,009 steps of 13 grids, {1_009 * 13 / (2 * 47):.1f} times" in said


def test_the_outcome_is_in_the_last_lines_that_hold_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    lines = [
        {"stage": "autoencoder", "step": 5, "usage.top": 0.5, "perplexity.top": 3.0},
        {"stage": "autoencoder", "step": 10, "usage.top": 0.75, "perplexity.top": 7.25},
        {"stage": "autoencoder", "step": 10, "held_out_mse": 0.001},
        {"stage": "prior.top", "step": 10, "held_out_mse": 0.5},
    ]
    run.path.mkdir()
    run.metrics_lines.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = outcome(run, "autoencoder", steps=1_009, seconds=95.0, left=run.autoencoder)
    assert said.splitlines() == [
        "autoencoder: 1,009 steps in 1 min 35 s",
        "  held-out error  0.001 (mean square on [0, 1], 30.00 dB)",
        "  codes in use    top 75%, perplexity 7.25",
        f"  model           {run.autoencoder}",
        f"  log             {run.metrics_lines}",
    ]


def test_training_says_all_of_it(trained_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hvq.training import fit_autoencoder
    from tests.runs import changed

    run = RunFolder(tmp_path / "run")
    config: RunConfig = changed(trained_run.config, autoencoder_training__steps=23)
    model = fit_autoencoder(config, run, sources=trained_run.sources)
    said = capsys.readouterr().out
    assert said.index("training the autoencoder on 47 images") < said.index(
        autoencoder_summary(model, (16, 16), 1, config.autoencoder_training, 47)
    )
    assert "autoencoder: 23 steps in " in said
    assert f"model           {run.autoencoder}\n" in said
    assert len(re.findall("for the 3 steps that are left", said)) == 1
