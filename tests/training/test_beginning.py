"""How a training begins: fresh, from other weights, or where it was stopped."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from hvq.config import RunConfig
from hvq.errors import CheckpointError, ConfigurationError
from hvq.storage import RunFolder, encoder_hash, load_autoencoder, load_prior
from hvq.training import extract_codes, fit_autoencoder, fit_prior
from hvq.training.checkpoint_files import CheckpointFolders, read_checkpoint
from tests.runs import TrainedRun, changed, differing
from tests.training.interruption import killed_at


def _one_step(config: RunConfig, **fields: Any) -> RunConfig:
    # So small a learning rate that what training begins from can be told.
    small = {"autoencoder_training__steps": 1, "autoencoder_training__learning_rate": 1e-12}
    return changed(config, **small, **fields)


def _fit(config: RunConfig, run: RunFolder, **options: Any) -> tuple[dict[str, torch.Tensor], str]:
    said = io.StringIO()
    with redirect_stdout(said):
        model = fit_autoencoder(config, run, **options)
    return model.state_dict(), said.getvalue()


def _weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if ".quantizer." not in name}


def _assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() <= other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-6


def test_weights_of_a_run_or_of_its_model_are_begun_from(trained_run: TrainedRun, tmp_path: Path) -> None:
    old = load_autoencoder(trained_run.run.autoencoder)[0].state_dict()
    for i, folder in enumerate((trained_run.run.path, trained_run.run.autoencoder)):
        state, said = _fit(_one_step(trained_run.config), RunFolder(tmp_path / str(i)), init_from=folder)
        _assert_near(_weights(old), state)
        assert f"begun from {trained_run.run.autoencoder}: {len(old)} of {len(old)} tensors\n" in said
        # The codebook goes on from its moving averages, and from k-means no second time.
        assert int(state["levels.top.quantizer.head_codebooks.0.steps"]) == 41


def test_averaged_weights_of_the_newest_training_checkpoint_are_begun_from(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    config = changed(
        trained_run.config, autoencoder_training__average_decay=0.5, autoencoder_training__checkpoint_every=2
    )
    stopped = RunFolder(tmp_path / "stopped")
    with killed_at(5):
        fit_autoencoder(config, stopped)
    folders = CheckpointFolders(stopped.checkpoint("autoencoder"))
    average = read_checkpoint(folders.of_step(5))[1]["average"]
    for i, folder in enumerate((folders.path, folders.of_step(5))):
        state, said = _fit(_one_step(trained_run.config), RunFolder(tmp_path / str(i)), init_from=folder)
        _assert_near(_weights(average), state)
        assert f"begun from {folders.of_step(5)}" in said


def test_a_codebook_of_another_size_starts_from_k_means(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = _one_step(trained_run.config, autoencoder__levels__top__codebook_size=7)
    old = load_autoencoder(trained_run.run.autoencoder)[0].state_dict()
    state, said = _fit(config, RunFolder(tmp_path), init_from=trained_run.run.path)
    assert "; fresh are levels.top.quantizer\n" in said
    _assert_near(_weights(old), state)
    top, bottom = (f"levels.{name}.quantizer.head_codebooks.0" for name in ("top", "bottom"))
    assert len(state[f"{top}.vectors"]) == 7
    assert [int(state[f"{name}.steps"]) for name in (top, bottom)] == [1, 41]
    assert bool(state[f"{top}.initialized"])


def test_frozen_levels_stay_as_they_are(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = changed(
        trained_run.config,
        autoencoder_training__frozen_levels=["bottom"],
        autoencoder_training__steps=5,
        autoencoder__levels__top__codebook_size=7,
        autoencoder_training__checkpoint_every=2,
    )
    old = load_autoencoder(trained_run.run.autoencoder)[0].state_dict()
    frozen = {name: tensor for name, tensor in old.items() if name.startswith("levels.bottom.")}
    straight, stopped = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "stopped")
    state, _ = _fit(config, straight, init_from=trained_run.run.path)
    assert [name for name in frozen if not torch.equal(frozen[name], state[name])] == []
    assert [name for name in old if name.startswith("decoder.") and torch.equal(old[name], state[name])] == []
    with killed_at(3):
        fit_autoencoder(config, stopped, init_from=trained_run.run.path)
    # The weights that it began from are not needed again.
    resumed, said = _fit(config, stopped, resume=True, init_from=tmp_path / "gone")
    assert differing(state, resumed) == []
    assert "begun from" not in said


def test_frozen_levels_need_weights(trained_run: TrainedRun, tmp_path: Path) -> None:
    for names, sentence in ((["bottom"], r"bottom, whose weights are fresh.*--init-from"), (["x"], "no level x")):
        config = changed(trained_run.config, autoencoder_training__frozen_levels=names)
        with pytest.raises(ConfigurationError, match=sentence):
            fit_autoencoder(config, RunFolder(tmp_path))


def test_a_prior_begins_from_another_run(trained_run: TrainedRun, copied_run: TrainedRun, tmp_path: Path) -> None:
    config = changed(
        trained_run.config,
        priors__top__training={"steps": 1, "learning_rate": 1e-12, "average_decay": 0.0, "batch_size": 12},
    )
    old = load_prior(trained_run.run.prior("top"))[0].state_dict()
    prior = fit_prior(config, copied_run.run, "top", init_from=trained_run.run.path)
    _assert_near(old, prior.state_dict())


def test_what_cannot_be_begun_from_is_refused(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = _one_step(trained_run.config)
    with pytest.raises(CheckpointError, match=r"--init-from takes the folder .*none holds neither model.saf"):
        fit_autoencoder(config, RunFolder(tmp_path / "run"), init_from=tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no tensor of .* has the name and shape of one of this model's"):
        fit_autoencoder(config, RunFolder(tmp_path / "run"), init_from=trained_run.run.prior("top"))
    assert not (tmp_path / "run").exists()


def test_a_prior_of_another_autoencoder_is_not_taken_for_done(trained_run: TrainedRun, copied_run: TrainedRun) -> None:
    run = copied_run.run
    made = load_prior(run.prior("top"))[1].held_out_nats
    assert fit_prior(copied_run.config, run, "top", resume=True).state_dict().keys()
    assert load_prior(run.prior("top"))[1].held_out_nats == made
    fit_autoencoder(_one_step(trained_run.config), run, sources=trained_run.sources)
    extract_codes(copied_run.config, run, sources=trained_run.sources)
    config = changed(copied_run.config, priors__top__training__steps=1)
    fit_prior(config, run, "top", resume=True)
    assert load_prior(run.prior("top"))[1].encoder_hash == encoder_hash(load_autoencoder(run.autoencoder)[0])
