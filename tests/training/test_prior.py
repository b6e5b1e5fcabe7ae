"""Stage 2: it learns, keeps its best weights, resumes exactly, and refuses codes that are not its own."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch.nn import functional

from hvq.config import RunConfig
from hvq.data import CodeFolder
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, ConfigurationError, DataError
from hvq.priors import Prior
from hvq.storage import RunFolder, load_prior
from hvq.training import fit_prior
from hvq.training.checkpoint_files import CheckpointFolders
from hvq.training.log import MEASURED
from hvq.training.looks import held_out_nats
from hvq.training.processes import make_accelerator
from tests.processes import run_in_processes
from tests.runs import CLASSES, LEVELS, TrainedRun, changed, differing, files_below, rewrite_codes, tensors_below
from tests.threads import run_in_threads
from tests.training.interruption import keep_last_checkpoint, killed_at
from tests.training.prior_kinds import PRIORS


def _rows(run: RunFolder, level: str) -> list[dict[str, Any]]:
    return [row for row in run.lines() if row["stage"] == f"prior.{level}"]


@pytest.mark.parametrize("level", LEVELS)
def test_it_learns(trained_run: TrainedRun, level: str) -> None:
    rows = _rows(trained_run.run, level)
    nats = [row["nats"] for row in rows if "nats" in row]
    assert len(nats) == 12
    assert nats[-1] < nats[0]
    looks = [row for row in rows if "held_out_nats" in row]
    assert [row["step"] for row in looks] == [5, 10, 12]
    unigram = CodeFolder(trained_run.run.codes, "validation").entropy(level)
    assert {row["unigram_entropy"] for row in looks} == {unigram}


@pytest.mark.parametrize("level", LEVELS)
def test_the_description_tells_of_the_very_weights_that_are_saved(trained_run: TrainedRun, level: str) -> None:
    run = trained_run.run
    prior, description = load_prior(run.prior(level))
    codes = CodeFolder(run.codes, "validation")
    assert held_out_nats(prior, codes, level, 7, Reduction()) == description.held_out_nats
    assert description.held_out_nats == min(row["held_out_nats"] for row in _rows(run, level) if "held_out_nats" in row)
    assert (description.level, description.classes, description.encoder_hash) == (level, CLASSES, codes.encoder_hash)
    assert description.coarser == ({} if level == "top" else {"top": 11})
    assert (description.grid, description.image_size) == (codes.grids[level], (16, 16))


def test_weights_that_were_better_are_kept(copied_run: TrainedRun) -> None:
    """With a learning rate that ruins it, the last weights are not the best."""
    config = _ruined(copied_run.config)
    returned = fit_prior(config, copied_run.run, "top")
    nats = [row["held_out_nats"] for row in _rows(copied_run.run, "top") if "held_out_nats" in row]
    assert min(nats) < nats[-1]
    prior, description = load_prior(copied_run.run.prior("top"))
    assert description.held_out_nats == min(nats)
    assert differing(prior.state_dict(), returned.state_dict()) == []
    codes = CodeFolder(copied_run.run.codes, "validation")
    assert held_out_nats(prior, codes, "top", 7, Reduction()) == min(nats)


def test_held_out_nats_do_not_depend_on_processes(trained_run: TrainedRun) -> None:
    prior, description = load_prior(trained_run.run.prior("bottom"))
    codes = CodeFolder(trained_run.run.codes, "validation")
    for processes in (2, 3, 5):
        nats = run_in_threads(lambda reduction: held_out_nats(prior, codes, "bottom", 7, reduction), processes)
        assert nats == [pytest.approx(description.held_out_nats, rel=1e-12)] * processes


# --- every kind ---------------------------------------------------------------------------------------------------


def _of_kind(config: RunConfig, kind: str, **training: Any) -> RunConfig:
    """The bottom level's prior as one of the kind, which has drop-out unless it is told otherwise."""
    fields = {f"priors__bottom__training__{name}": value for name, value in training.items()}
    return changed(config, priors__bottom__model=PRIORS[kind], **fields)


def _without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


@pytest.mark.parametrize("kind", PRIORS)
def test_resume_is_equality(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = _of_kind(
        trained_run.config, kind, steps=7, checkpoint_every=5, log_every=2, evaluate_every=3, micro_batches=2
    )
    straight, stopped = (trained_run.copied(tmp_path / name).run for name in ("straight", "stopped"))
    keep_last_checkpoint(monkeypatch)
    fit_prior(config, straight, "bottom")
    with killed_at(6):
        fit_prior(config, stopped, "bottom")
    assert CheckpointFolders(stopped.checkpoint("prior.bottom")).steps() == [5, 6]
    fit_prior(config, stopped, "bottom", resume_at=5)
    one, other = (tensors_below(run.path) for run in (straight, stopped))
    for part in (
        "priors/bottom/model",
        "optimizer.safetensors/exp_avg/",
        "average",
        "kept.safetensors/record/score",
        "kept.safetensors/record/looks_since_best",
    ):
        assert any(part in name for name in one), part
    assert differing(one, other) == []
    assert _without_times(_rows(straight, "bottom")) == _without_times(_rows(stopped, "bottom"))


def _first_gradients(config: RunConfig, run: RunFolder) -> dict[str, torch.Tensor]:
    """Clipped, over all micro-batches and processes: what the optimizer has averaged after one step of them."""
    fit_prior(config, run, "bottom")
    moments = load_file(CheckpointFolders(run.checkpoint("prior.bottom")).of_step(1) / "optimizer.safetensors")
    share = 1 - config.prior("bottom").training.betas[0]
    return {name: tensor / share for name, tensor in moments.items() if name.startswith("exp_avg/")}


def _assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """In shares of the norm of all gradients together."""
    norm = float(torch.stack([gradient.square().sum() for gradient in one.values()]).sum().sqrt())
    assert norm > 0.01
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5 * norm


@pytest.mark.parametrize("kind", PRIORS)
def test_four_micro_batches_equal_one_batch(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    keep_last_checkpoint(monkeypatch)
    config = changed(_of_kind(trained_run.config, kind, steps=1), priors__bottom__model__dropout=0.0)
    whole, parted = (
        _first_gradients(
            changed(config, priors__bottom__training__micro_batches=parts),
            trained_run.copied(tmp_path / str(parts)).run,
        )
        for parts in (1, 3)
    )
    _assert_close(whole, parted)


@dataclass
class _Dtypes:
    """What a prior computes in: its logits, and the loss of them."""

    logits: set[torch.dtype] = field(default_factory=set)
    loss: set[torch.dtype] = field(default_factory=set)

    def record(self, patch: pytest.MonkeyPatch) -> None:
        forward, cross_entropy = Prior.forward, functional.cross_entropy

        def recorded_forward(prior: Prior, *arguments: Any) -> torch.Tensor:
            logits = forward(prior, *arguments)
            self.logits.add(logits.dtype)
            return logits

        def recorded_loss(logits: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
            loss = cross_entropy(logits, *arguments, **options)
            self.loss |= {logits.dtype, loss.dtype}
            return loss

        patch.setattr(Prior, "forward", recorded_forward)
        patch.setattr(functional, "cross_entropy", recorded_loss)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("kind", PRIORS)
def test_under_bf16_it_learns_as_in_float32(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    curves: dict[str, list[float]] = {}
    dtypes = {precision: _Dtypes() for precision in ("no", "bf16")}
    for precision, seen in dtypes.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        config = _of_kind(trained_run.config, kind, steps=16, evaluate_every=8, learning_rate=1e-2)
        run = trained_run.copied(tmp_path / precision).run
        with monkeypatch.context() as patch:
            seen.record(patch)
            fit_prior(changed(config, mixed_precision=precision), run, "bottom")
        rows = _rows(run, "bottom")
        curves[precision] = [row[name] for row in rows for name in ("nats", "held_out_nats") if name in row]
    assert dtypes["no"].logits == {torch.float32}
    # Training in bfloat16, looks in float32; the loss of either is never in fewer bits than that.
    assert dtypes["bf16"].logits == {torch.bfloat16, torch.float32}
    assert dtypes["bf16"].loss == dtypes["no"].loss == {torch.float32, torch.float64}
    falls = curves["no"][0] - curves["no"][-1]
    assert falls > 0.1
    assert curves["bf16"] != curves["no"]
    assert max(abs(one - other) for one, other in zip(curves["no"], curves["bf16"], strict=True)) < 0.1 * falls
    # What is saved is float32, and the very weights that were looked at.
    prior, description = load_prior(tmp_path / "bf16" / "priors" / "bottom")
    assert {tensor.dtype for tensor in prior.state_dict().values()} == {torch.float32}
    codes = CodeFolder(trained_run.run.codes, "validation")
    assert held_out_nats(prior, codes, "bottom", 7, Reduction()) == description.held_out_nats


# --- several processes --------------------------------------------------------------------------------------------


def _two_minds(looks_done: int) -> Callable[..., float]:
    """Held-out nats that rise from the third look on; the second process for itself would see them fall for ever."""
    seen = [2.0, 1.0, *(1.5 + 0.1 * look for look in range(20))]
    if int(os.environ["RANK"]) == 1:
        seen = [2.0 - 0.01 * look for look in range(22)]
    looks = iter(seen[looks_done:])
    return lambda *_, **__: next(looks)


def _stop_and_resume_in_group(plain: dict[str, Any], folder: str) -> list[dict[str, torch.Tensor]]:
    """The weights after training straight, and after training that was killed and resumed."""
    config, states = RunConfig.model_validate(plain), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hvq.training.looks.nats_per_code", _two_minds(0))
        states.append(fit_prior(config, RunFolder(f"{folder}/straight"), "bottom").state_dict())
        patch.setattr("hvq.training.looks.nats_per_code", _two_minds(0))
        with killed_at(3):
            fit_prior(config, RunFolder(f"{folder}/stopped"), "bottom")
        patch.setattr("hvq.training.looks.nats_per_code", _two_minds(2))
        states.append(fit_prior(config, RunFolder(f"{folder}/stopped"), "bottom", resume=True).state_dict())
    return states


@pytest.mark.processes
def test_two_processes_stop_alike_and_resume(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = _of_kind(trained_run.config, "pixelsnail", steps=20, patience=2, evaluate_every=1, checkpoint_every=2)
    runs = [trained_run.copied(tmp_path / name).run for name in ("straight", "stopped")]
    ranks = run_in_processes(_stop_and_resume_in_group, 2, config.model_dump(mode="json"), str(tmp_path))
    assert [_rows(run, "bottom")[-1]["step"] for run in runs] == [4, 4]
    assert [differing(ranks[0][0], state) for states in ranks for state in states] == [[]] * 4


def _first_gradients_in_group(plain: dict[str, dict[str, Any]], folder: str) -> dict[str, dict[str, torch.Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        keep_last_checkpoint(patch)
        return {
            kind: _first_gradients(RunConfig.model_validate(fields), RunFolder(f"{folder}/{kind}"))
            for kind, fields in plain.items()
        }


@pytest.mark.processes
def test_two_processes_take_the_step_that_one_takes(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_last_checkpoint(monkeypatch)
    # Without drop-out, which each process has of its own.
    configs = {
        kind: changed(_of_kind(trained_run.config, kind, steps=1), priors__bottom__model__dropout=0.0)
        for kind in PRIORS
    }
    for kind in PRIORS:
        trained_run.copied(tmp_path / "two" / kind)
    plain = {kind: config.model_dump(mode="json") for kind, config in configs.items()}
    two, _ = run_in_processes(_first_gradients_in_group, 2, plain, str(tmp_path / "two"))
    for kind, config in configs.items():
        _assert_close(_first_gradients(config, trained_run.copied(tmp_path / "one" / kind).run), two[kind])


# --- over-fitting -------------------------------------------------------------------------------------------------

# A learning rate that ruins the weights after a few steps, and a look after each.
RUINOUS = {"learning_rate": 3.0, "average_decay": 0.0, "evaluate_every": 1, "warmup_steps": 6}


LOOKS = {"batch_size": 12, "warmup_steps": 2, "log_every": 1, "evaluate_every": 1, "checkpoint_every": 2}


def _script(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """What the next looks at held-out codes find."""
    coming = iter(scores)
    monkeypatch.setattr("hvq.training.looks.held_out_nats", lambda *_: next(coming))


def _fit_and_listen(config: RunConfig, run: RunFolder, **options: Any) -> list[str]:
    """What is said while the top level's prior trains, without its summaries."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        fit_prior(config, run, "top", **options)
    return [line for line in printed.getvalue().splitlines() if not re.match(r"  |prior\.top: \d+ steps in ", line)]


def _ruined(config: RunConfig, **training: Any) -> RunConfig:
    fields = {f"priors__top__training__{name}": value for name, value in {**RUINOUS, **training}.items()}
    return changed(config, **fields)


def test_patience_ends_training_early_and_the_best_weights_are_kept(copied_run: TrainedRun) -> None:
    said = _fit_and_listen(_ruined(copied_run.config, steps=40, patience=3), copied_run.run)
    looks = [(row["held_out_nats"], row["step"]) for row in _rows(copied_run.run, "top") if "held_out_nats" in row]
    best = min(looks)
    last = looks[-1][1]
    assert [step for _, step in looks] == list(range(1, last + 1))
    assert last == best[1] + 3 < 40
    assert load_prior(copied_run.run.prior("top"))[1].held_out_nats == best[0]
    assert f"stopped early, at step {last} of 40: 3 looks at held-out codes without improvement" in said[-2]
    assert said[-1] == f"prior of level top: the weights of step {best[1]} are kept"


@pytest.mark.parametrize("killed", [2, 4, 5])
def test_patience_survives_a_kill(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    config = changed(trained_run.config, priors__top__training={**LOOKS, "steps": 40, "patience": 4})
    scores = [3.0, 2.0, 2.5, 2.4, 2.6, 2.1]
    straight, stopped = (trained_run.copied(tmp_path / name).run for name in ("straight", "stopped"))
    keep_last_checkpoint(monkeypatch)
    _script(monkeypatch, scores)
    fit_prior(config, straight, "top")
    _script(monkeypatch, scores)
    with killed_at(killed):
        fit_prior(config, stopped, "top")
    checkpoint = killed - killed % 2
    _script(monkeypatch, scores[checkpoint:])
    fit_prior(config, stopped, "top", resume_at=checkpoint)
    assert _rows(stopped, "top")[-1]["step"] == len(scores)
    assert differing(*(tensors_below(run.path) for run in (straight, stopped))) == []
    assert _without_times(_rows(straight, "top")) == _without_times(_rows(stopped, "top"))


def test_a_run_that_was_stopped_may_go_on_with_less_patience(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(copied_run.config, priors__top__training={**LOOKS, "steps": 40})
    _script(monkeypatch, [3.0, 2.0, 2.5, 2.4])
    with killed_at(4):
        fit_prior(config, copied_run.run, "top")
    impatient = changed(config, priors__top__training__patience=2)
    said = _fit_and_listen(impatient, copied_run.run, resume=True)
    assert "stopped early, at step 4 of 40" in said[-2]
    assert _rows(copied_run.run, "top")[-1]["step"] == 4


def test_training_that_ran_to_its_end_did_not_stop_early(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(monkeypatch, [3.0, 2.0, 2.5, 2.4])
    config = changed(copied_run.config, priors__top__training={**LOOKS, "steps": 4, "patience": 2})
    said = _fit_and_listen(config, copied_run.run)
    assert _rows(copied_run.run, "top")[-1]["step"] == 4
    assert not any("stopped early" in line for line in said)
    assert said[-1] == "prior of level top: the weights of step 2 are kept"


def test_a_level_begins_with_its_own_loss_scale(copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator(copied_run.config, copied_run.run)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monkeypatch.setattr(
        "hvq.training.optimization.get_grad_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=64.0)
    )
    with redirect_stdout(io.StringIO()):
        for level in ("top", "bottom"):
            fit_prior(copied_run.config, copied_run.run, level, accelerator=accelerator)
            assert accelerator.scaler.get_scale() == 64.0
            accelerator.scaler.update(2.0)


def test_overfitting_is_told_once_with_numbers_and_ways_out(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(monkeypatch, [2.0, 1.5, 1.51, 1.6, 1.7])
    config = changed(
        copied_run.config,
        priors__top__training__steps=25,
        priors__top__training__evaluate_every=5,
        priors__top__training__learning_rate=1e-2,
    )
    said = _fit_and_listen(config, copied_run.run)
    training = [row["training_loss"] for row in _rows(copied_run.run, "top") if "training_loss" in row]
    assert training == sorted(training, reverse=True)
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert (
        "the prior of level top over-fits: from step 10 to 20, held-out nats per code rose from 1.500 to 1.600"
        in warning
    )
    assert f"the training loss fell from {training[1]:.3f} to {training[3]:.3f}" in warning
    for way_out in (
        "extraction.augmented_epochs",
        "priors.top.model.dropout",
        "smaller priors.top.model",
        "priors.top.training.patience",
    ):
        assert way_out in warning
    assert said[-1] == "prior of level top: the weights of step 10 are kept"


def test_nats_stand_beside_what_is_reached_without_a_prior(copied_run: TrainedRun) -> None:
    said = _fit_and_listen(copied_run.config, copied_run.run)
    rows = _rows(copied_run.run, "top")
    per_step = {row["step"]: row["nats"] for row in rows if "nats" in row}
    looks = {row["step"]: row for row in rows if "held_out_nats" in row}
    for first, last in ((1, 5), (6, 10), (11, 12)):
        mean = sum(per_step[step] for step in range(first, last + 1)) / (last + 1 - first)
        assert looks[last]["training_loss"] == pytest.approx(mean, rel=1e-12)
        assert looks[last]["log_codebook_size"] == math.log(11)
    best = min(looks.values(), key=lambda row: row["held_out_nats"])
    assert said[-2] == (
        f"prior of level top, nats per code: {best['held_out_nats']:.3f} held out; training loss "
        f"{best['training_loss']:.3f}, unigram entropy {best['unigram_entropy']:.3f}, log K 2.398"
    )
    assert said[-1] == f"prior of level top: the weights of step {best['step']} are kept"


# --- refusals -----------------------------------------------------------------------------------------------------


def _collapse(run: RunFolder) -> None:
    rewrite_codes(run, "train", constant="top")


def _retrain(run: RunFolder) -> None:
    file = run.autoencoder / "model.safetensors"
    tensors = load_file(file)
    tensors["levels.top.projection.bias"] += 1
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "level", "error", "sentence"),
    [
        (lambda run: None, "botom", ConfigurationError, r"no level 'botom'; the levels of .* are top, bottom"),
        (lambda run: shutil.rmtree(run.codes), "top", CheckpointError, "no complete codes in .*; extract the codes"),
        (_retrain, "top", CheckpointError, "were made by another autoencoder: .* extract the codes again"),
        (
            _collapse,
            "top",
            DataError,
            r"codes of level top are all but constant: their entropy must be at least 0.01 nats and is 0.0000 "
            r"\(log K is 2.3979\), and 1 of 11 codes occur. .* train the autoencoder anew, .*, and extract the codes",
        ),
    ],
)
def test_what_it_refuses_is_left_as_it_was(
    copied_run: TrainedRun, damage: Any, level: str, error: type[Exception], sentence: str
) -> None:
    damage(copied_run.run)
    before = files_below(copied_run.run.path)
    with pytest.raises(error, match=sentence):
        fit_prior(copied_run.config, copied_run.run, level)
    assert files_below(copied_run.run.path) == before


def test_of_several_codes_per_position_each_has_to_tell_something(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over them is far from zero where only one has collapsed."""
    counts = torch.tensor([[5, 5, 5, 5], [0, 20, 0, 0], [9, 9, 1, 1]])
    monkeypatch.setattr(CodeFolder, "counts", lambda *_: counts)
    before = files_below(copied_run.run.path)
    sentence = (
        r"code 2 of the 3 per position of level top is all but constant: .* is 0.0000 \(log K is 1.3863\), and 1 of 4 "
        r"codes occur. .* fewer codes per position, and extract the codes"
    )
    with pytest.raises(DataError, match=sentence):
        fit_prior(copied_run.config, copied_run.run, "top")
    assert files_below(copied_run.run.path) == before


def test_a_prior_that_never_becomes_finite_is_not_saved(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied_run.run.prior("top"))
    monkeypatch.setattr("hvq.training.looks.held_out_nats", lambda *_: float("nan"))
    with pytest.raises(DataError, match="the loss on held-out data was never finite; lower learning_rate"):
        fit_prior(copied_run.config, copied_run.run, "top")
    assert not copied_run.run.prior("top").exists()


def test_labels_reach_the_prior(trained_run: TrainedRun) -> None:
    prior, _ = load_prior(trained_run.run.prior("top"))
    codes = CodeFolder(trained_run.run.codes, "train")
    rows = codes.fetch(torch.arange(len(codes)).numpy())
    source = trained_run.sources.train
    expected = [source.label(i % codes.num_images) for i in range(len(codes))]
    assert rows.labels.tolist() == expected
    assert prior.get_submodule("condition.classes").weight.shape[0] == len(CLASSES) + 1
