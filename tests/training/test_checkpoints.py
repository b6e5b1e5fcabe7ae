"""A training checkpoint holds everything or is refused, and never goes half-written."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hvq.config import RunConfig
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, StorageError
from hvq.training.checkpoint_files import CheckpointFolders, read_checkpoint, write_checkpoint
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.optimization import Losses, Optimization
from hvq.training.state import optimizer_tensors
from tests.pickling import block_pickle
from tests.runs import changed, differing, tiny_config

PARTS = ("seed", "data", "autoencoder", "autoencoder_training")


def _optimization(config: RunConfig, steps: int, **fields: Any) -> Optimization:
    torch.manual_seed(steps)
    training = config.priors["top"].training.model_copy(update=fields)
    optimization = Optimization(nn.Linear(5, 3), training, Accelerator(), seed=0)

    def losses(batch: Tensor) -> Losses:
        return optimization.wrapped(batch).square().mean(), {}

    for _ in range(steps):
        optimization.step([torch.randn(7, 5)], losses)
    return optimization


def _everything(optimization: Optimization) -> dict[str, Tensor]:
    average = {f"average/{name}": tensor for name, tensor in optimization.average.tensors.items()}
    return {
        **optimization.model.state_dict(),
        **average,
        **optimizer_tensors(optimization.model, optimization.optimizer),
    }


class _Counts:
    """Something that is kept beside the model."""

    def __init__(self, counts: Tensor | None = None) -> None:
        self.counts = counts

    def kept_tensors(self, reduction: Reduction) -> dict[str, Tensor]:
        return {} if self.counts is None else {"best/counts": self.counts}

    def take_back(self, tensors: dict[str, Tensor], reduction: Reduction) -> None:
        self.counts = tensors["best/counts"]


def _saved(
    folder: Path, optimization: Optimization, config: RunConfig, *, score: float | None = None
) -> TrainingCheckpoint:
    counts = _Counts(torch.arange(optimization.step_number))
    checkpoint = TrainingCheckpoint(folder, optimization, config.parts(*PARTS), kept={"counts": counts})
    if score is not None:
        checkpoint.offer(score)
    with checkpoint:
        checkpoint.save()
    return checkpoint


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_config(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, config: RunConfig) -> Path:
    _saved(tmp_path / "stage", _optimization(config, 3), config)
    return tmp_path / "stage"


def test_everything_comes_back(folder: Path, config: RunConfig) -> None:
    saved, restored = _optimization(config, 3), _optimization(config, 0)
    counts = _Counts()
    assert differing(_everything(saved), _everything(restored))
    checkpoint = TrainingCheckpoint(folder, restored, config.parts(*PARTS), kept={"counts": counts})
    assert checkpoint.load_if_present()
    assert differing(_everything(saved), _everything(restored)) == []
    assert restored.step_number == 3
    assert counts.counts is not None
    assert counts.counts.tolist() == [0, 1, 2]


def test_it_is_safetensors_and_json_without_partial_files(folder: Path) -> None:
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {f"{name}.safetensors" for name in ("model", "average", "optimizer", "kept")} | {"state.json"}
    assert [path.name for path in folder.iterdir()] == ["step-000000003"]


def test_nothing_is_unpickled(folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    block_pickle(monkeypatch)
    assert _loaded(folder, config).step_number == 3


def test_where_there_is_none_there_is_nothing_to_load(tmp_path: Path, config: RunConfig) -> None:
    optimization = _optimization(config, 0)
    assert not TrainingCheckpoint(tmp_path / "none", optimization, config.parts(*PARTS)).load_if_present()
    assert optimization.step_number == 0


def _loaded(folder: Path, config: RunConfig, step: int | None = None) -> Optimization:
    optimization = _optimization(config, 0)
    checkpoint = TrainingCheckpoint(folder, optimization, config.parts(*PARTS))
    assert checkpoint.load_if_present(step)
    return optimization


def test_the_newest_is_taken_or_the_one_that_is_named(folder: Path, config: RunConfig) -> None:
    optimization = _optimization(config, 5)
    _saved(folder, optimization, config)
    assert differing(_everything(optimization), _everything(_loaded(folder, config))) == []
    assert _loaded(folder, config, step=3).step_number == 3
    with pytest.raises(CheckpointError, match=r"no training checkpoint of step 4 in .*; there are: 3, 5"):
        _loaded(folder, config, step=4)


def test_the_last_few_and_the_best_are_kept(tmp_path: Path, config: RunConfig) -> None:
    optimization = _optimization(config, 0, keep_checkpoints=3)
    checkpoint = TrainingCheckpoint(tmp_path, optimization, {})
    for step, score in enumerate([5.0, 2.0, 4.0, 2.0, float("nan"), 3.0], start=1):
        optimization.step_number = step
        checkpoint.offer(score)
        checkpoint.save()
    checkpoint.wait()
    assert CheckpointFolders(tmp_path).steps() == [2, 4, 5, 6]
    assert (checkpoint.best_step, checkpoint.best_score) == (2, 2.0)
    # A resumed run knows which is the best.
    again = TrainingCheckpoint(tmp_path, _optimization(config, 0), {})
    again.load_if_present()
    assert (again.best_step, again.best_score) == (2, 2.0)


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path, config: RunConfig) -> None:
    optimization = _optimization(config, 3)
    before = {name: tensor.clone() for name, tensor in _everything(optimization).items()}
    checkpoint = TrainingCheckpoint(tmp_path, optimization, config.parts(*PARTS))
    gate = threading.Event()
    checkpoint._writer.submit(gate.wait)
    checkpoint.save()
    for tensor in _everything(optimization).values():
        tensor.fill_(torch.nan)
    gate.set()
    checkpoint.wait()
    assert differing(before, _everything(_loaded(tmp_path, config))) == []


def test_an_interrupted_save_leaves_the_one_before(
    folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    optimization = _optimization(config, 5)
    with monkeypatch.context() as patch:
        patch.setattr("hvq.training.checkpoint_files.write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _saved(folder, optimization, config)
    assert _loaded(folder, config).step_number == 3


def test_a_save_that_failed_is_told_with_the_next_one(
    folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint = TrainingCheckpoint(folder, _optimization(config, 5), config.parts(*PARTS))
    with monkeypatch.context() as patch:
        patch.setattr("hvq.files.save_file", full)
        checkpoint.save()
        with pytest.raises(StorageError, match=r"step-000000005.* cannot be written: No space left on device"):
            checkpoint.save()
    checkpoint.check()
    assert [path.name for path in folder.iterdir()] == ["step-000000003"]
    assert _loaded(folder, config).step_number == 3


def test_when_the_stage_is_done_it_goes(folder: Path, config: RunConfig) -> None:
    checkpoint = TrainingCheckpoint(folder, _optimization(config, 0), config.parts(*PARTS))
    for _ in range(2):
        checkpoint.remove()
        assert list(folder.parent.iterdir()) == []


# --- beginnings ---------------------------------------------------------------------------------------------------


def test_a_new_training_sets_old_checkpoints_aside(folder: Path, config: RunConfig) -> None:
    for step in (7, 2, 5):
        checkpoint = TrainingCheckpoint(folder, _optimization(config, 0), config.parts(*PARTS))
        said = checkpoint.begin(resumed=False)
        assert said is not None
        assert "set aside in" in said
        assert CheckpointFolders(folder).steps() == []
        _saved(folder, _optimization(config, step), config)
    # Each of them: who forgets --resume twice loses nothing.
    assert CheckpointFolders(folder.with_name("stage.earlier")).steps() == [3]
    assert CheckpointFolders(folder.with_name("stage.earlier-2")).steps() == [7]
    assert CheckpointFolders(folder.with_name("stage.earlier-3")).steps() == [2]
    checkpoint.remove()
    assert list(folder.parent.iterdir()) == []


def test_a_resumed_training_clears_what_it_will_do_anew_and_what_a_kill_has_left(
    folder: Path, config: RunConfig
) -> None:
    _saved(folder, _optimization(config, 5), config)
    (folder / ".step-000000009.123.partial").mkdir()
    optimization = _optimization(config, 0)
    checkpoint = TrainingCheckpoint(folder, optimization, config.parts(*PARTS))
    checkpoint.load_if_present(3)
    assert checkpoint.begin(resumed=True) is None
    # The later one stays until training has a checkpoint of its own again.
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000003", "step-000000005"]
    optimization.step_number = 4
    checkpoint.save()
    checkpoint.wait()
    assert checkpoint.folders.steps() == [3, 4]


def test_a_stage_is_done_once_its_result_is_there_and_no_training_has_begun_since(
    tmp_path: Path, config: RunConfig
) -> None:
    checkpoint = TrainingCheckpoint(tmp_path / "stage", _optimization(config, 0), config.parts(*PARTS))
    result = tmp_path / "model"
    assert not checkpoint.is_done(result)
    result.mkdir()
    assert checkpoint.is_done(result)
    checkpoint.begin(resumed=False)
    # Killed before its first checkpoint, it is not the one that made the result.
    assert not checkpoint.is_done(result)
    checkpoint.remove()
    assert checkpoint.is_done(result)


def test_seconds_are_those_of_all_that_led_there(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("hvq.training.checkpoints.time.perf_counter", lambda: clock[0])
    first = TrainingCheckpoint(tmp_path / "stage", _optimization(config, 3), config.parts(*PARTS))
    clock[0] += 7
    first.save()
    first.wait()
    clock[0] += 1000
    second = TrainingCheckpoint(tmp_path / "stage", _optimization(config, 0), config.parts(*PARTS))
    assert second.load_if_present()
    clock[0] += 5
    assert second.seconds == 12


# --- faults -------------------------------------------------------------------------------------------------------


def _edit_state(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state, parts = read_checkpoint(folder)
        write_checkpoint(folder, parts, {**state, **changes})

    return damage


def _flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def _with_parts(**changes: dict[str, Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state, parts = read_checkpoint(folder)
        write_checkpoint(folder, parts | changes, state)

    return damage


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without("state.json"), "no training checkpoint at .*state.json"),
        (_without("model.safetensors"), "no training checkpoint at .*model.safetensors"),
        (_without("average.safetensors"), "no training checkpoint at .*average.safetensors"),
        (_without("optimizer.safetensors"), "no training checkpoint at .*optimizer.safetensors"),
        (_without("kept.safetensors"), "no training checkpoint at .*kept.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "training checkpoint at .* is damaged"),
        (lambda folder: shutil.copy(folder / "kept.safetensors", folder / "model.safetensors"), "is damaged: it has"),
        (_flip("model.safetensors"), "model.safetensors is damaged: its checksum is not"),
        (_flip("state.json"), "state.json (is damaged|cannot be read)"),
        (_with_parts(model={"bias": torch.zeros(3)}), "lacks the tensor weight"),
        (_with_parts(average={}), "does not belong to this model: bias is missing"),
        (_with_parts(optimizer={"exp_avg/x": torch.zeros(3)}), "exp_avg/x of the optimizer"),
        (_edit_state(format_version=2), "format_version 2; this version of hvq resumes 3: resume with the version"),
        (
            _edit_state(format_version=4),
            "format_version 4; this version of hvq resumes 3: .* or train without --resume",
        ),
        (_edit_state(settings={}), "is of another configuration"),
    ],
)
def test_damage_is_refused(folder: Path, config: RunConfig, damage: Callable[[Path], object], sentence: str) -> None:
    damage(CheckpointFolders(folder).of_step(3))
    with pytest.raises(CheckpointError, match=sentence):
        TrainingCheckpoint(folder, _optimization(config, 0), config.parts(*PARTS)).load_if_present()


@pytest.mark.parametrize("labelled", [None, True, False])
def test_settings_from_before_a_field_existed_have_its_default(
    folder: Path, config: RunConfig, labelled: bool | None
) -> None:
    settings = config.parts(*PARTS)
    del settings["data"]["labelled"]
    if labelled is not None:
        settings["data"]["labelled"] = labelled
    _edit_state(settings=settings)(CheckpointFolders(folder).of_step(3))
    if labelled is not False:
        assert _loaded(folder, config).step_number == 3
    else:
        with pytest.raises(CheckpointError, match=r"data\.labelled is True, and was False"):
            _loaded(folder, config)


def test_where_the_newest_is_damaged_the_newest_whole_one_is_offered(folder: Path, config: RunConfig) -> None:
    folders = CheckpointFolders(folder)
    for step in (5, 7, 11):
        _saved(folder, _optimization(config, step, keep_checkpoints=9), config)
    for step, name in ((7, "kept.safetensors"), (11, "optimizer.safetensors")):
        _flip(name)(folders.of_step(step))
    with pytest.raises(
        CheckpointError, match=r"step-000000011/optimizer.safetensors is damaged.*of step 5: .*--resume-at 5"
    ):
        _loaded(folder, config)
    assert _loaded(folder, config, step=5).step_number == 5
    for step in (3, 5):
        _flip("state.json")(folders.of_step(step))
    with pytest.raises(CheckpointError, match="no other one is whole: train without --resume"):
        _loaded(folder, config)


@pytest.mark.parametrize("field", ["log_every", "checkpoint_every"])
def test_what_is_only_logged_may_change(folder: Path, config: RunConfig, field: str) -> None:
    other = changed(config, **{f"autoencoder_training__{field}": 17})
    assert TrainingCheckpoint(folder, _optimization(config, 0), other.parts(*PARTS)).load_if_present()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 4}, "seed is 4, and was 3"),
        ({"autoencoder__levels__top__width": 9}, r"autoencoder\.levels\.top\.width is 9, and was 8"),
        ({"autoencoder_training__evaluate_every": 7}, r"autoencoder_training\.evaluate_every is 7, and was 5"),
    ],
)
def test_what_is_computed_may_not(folder: Path, config: RunConfig, changes: dict[str, object], difference: str) -> None:
    checkpoint = TrainingCheckpoint(folder, _optimization(config, 0), changed(config, **changes).parts(*PARTS))
    with pytest.raises(CheckpointError, match=rf"another configuration \({difference}\); .*or train without --resume"):
        checkpoint.load_if_present()


@pytest.mark.parametrize("name", ["extractor", "sampling", "patience", "log_every"])
def test_a_term_of_the_loss_is_compared_whatever_its_name_is(tmp_path: Path, config: RunConfig, name: str) -> None:
    def of(weight: float, kind: str = "l1", **fields: Any) -> dict[str, Any]:
        terms = {"pixels": {"kind": "mse"}, name: {"kind": kind, "weight": weight, **fields}}
        return changed(config, autoencoder_training__reconstruction=terms).parts(*PARTS)

    def resumed(settings: dict[str, Any]) -> bool:
        return TrainingCheckpoint(tmp_path, _optimization(config, 0), settings).load_if_present()

    with TrainingCheckpoint(tmp_path, _optimization(config, 3), of(0.5)) as checkpoint:
        checkpoint.save()
    assert resumed(of(0.5))
    with pytest.raises(CheckpointError, match=rf"reconstruction\.{name}\.weight is 0.25, and was 0.5"):
        resumed(of(0.25))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"data": {"workers": 1}}, {"data": {"workers": 2}}),
        ({"prior": {"sampling": {"top_k": 3}}}, {"prior": {"sampling": {"top_k": 5}}}),
        ({"prior": {"training": {"patience": 1}}}, {"prior": {"training": {"patience": 2, "log_every": 7}}}),
        (
            {"autoencoder_training": {"reconstruction": {"features": {"extractor": "here"}}}},
            {"autoencoder_training": {"reconstruction": {"features": {"extractor": "there"}}}},
        ),
    ],
)
def test_fields_that_are_free_are_so_in_their_places_alone(
    tmp_path: Path, config: RunConfig, before: dict[str, Any], after: dict[str, Any]
) -> None:
    for settings, others, same in ((before, after, True), ({"other": before}, {"other": after}, False)):
        folder = tmp_path / str(same)
        with TrainingCheckpoint(folder, _optimization(config, 3), settings) as checkpoint:
            checkpoint.save()
        checkpoint = TrainingCheckpoint(folder, _optimization(config, 0), others)
        if same:
            assert checkpoint.load_if_present()
        else:
            with pytest.raises(CheckpointError, match="of another configuration"):
                checkpoint.load_if_present()
