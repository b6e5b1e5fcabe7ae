"""The command lines of all stages: on one process and on two, and what a person sees where something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hvq.files import read_json, write_tensors
from hvq.storage import RunFolder, load_autoencoder, load_prior
from tests.processes import free_port
from tests.runs import (
    LEVELS,
    RECIPES,
    ROOT,
    Outcome,
    TrainedRun,
    changed,
    differing,
    files_below,
    numbers_of,
    run_recipe,
    tensors_below,
    write_config,
)

# Runs recipes one after the other in one process, or in one group of them, each as the script that it is.
DRIVER = """
import json, runpy, sys

recipes, commands = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, recipes)
for name, *words in commands:
    sys.argv = [name, *words]
    try:
        runpy.run_path(f"{recipes}/{name}.py", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
"""


def _start(*words: str | Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """A script in processes of its own, as a person starts it."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    command = [sys.executable, *(launcher if processes > 1 else []), *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def _few_steps(run: TrainedRun) -> TrainedRun:
    training = dict.fromkeys(("autoencoder_training__steps", *(f"priors__{x}__training__steps" for x in LEVELS)), 2)
    return TrainedRun(changed(run.config, **training), run.run)


# --- one process --------------------------------------------------------------------------------------------------


def test_stage_after_stage_from_a_plain_folder_of_images(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", _few_steps(trained_run).config)
    run, where = RunFolder(tmp_path / "run"), ("--run-dir", tmp_path / "run")
    first = run_recipe("train_autoencoder", "--config", config, *where, "seed=7")
    stages = [
        run_recipe("extract_codes", *where),
        run_recipe("train_prior", *where, "--level", "top"),
        run_recipe("train_prior", *where, "--level", "bottom"),
        run_recipe("sample", *where, "--classes", "rows,block", "--seed", "5", "sampling.samples_per_class=3"),
        run_recipe("evaluate", *where),
    ]
    assert [(outcome.code, outcome.err) for outcome in (first, *stages)] == [(0, "")] * 6
    assert all("1 process on cpu" in outcome.out for outcome in (first, *stages))
    assert re.search(r"^ *value  name +meaning$", stages[-1].out, flags=re.MULTILINE)
    assert "left out, since there are no more than 5 classes" in stages[-1].out
    # Each names the next, the last one none.
    following = ["extract_codes", "train_prior", "train_prior", "sample", "evaluate"]
    pattern = re.compile(r"^next: python \S*?(\w+)\.py (.*)$", flags=re.MULTILINE)
    said = [pattern.findall(outcome.out) for outcome in (first, *stages)]
    assert said == [
        *([(name, f"--run-dir {run.path}" + " --level bottom" * (i == 2))] for i, name in enumerate(following)),
        [],
    ]
    # What the first stage was told is what the later ones go by.
    assert run.load_config().seed == 7
    samples = load_file(run.samples / "samples.safetensors")
    assert samples["labels"].tolist() == [2, 2, 2, 0, 0, 0]
    metrics = run.metrics()
    assert {"autoencoder", "codes", "prior.top", "prior.bottom", "samples", "evaluation"} <= metrics["seconds"].keys()
    assert all(value > 0 for value in metrics["seconds"].values())
    assert "<html" in run.report.read_text()
    assert not [name for name in files_below(run.path) if "partial" in name or "state.json" in name]


def test_quickstart_runs_every_stage(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", _few_steps(trained_run).config)
    outcome = run_recipe("quickstart", "--config", config, "--run-dir", tmp_path / "run")
    assert (outcome.code, outcome.err) == (0, "")
    assert "done in" in outcome.out
    run = RunFolder(tmp_path / "run")
    wanted = [run.autoencoder, run.codes, *map(run.prior, LEVELS), run.samples, run.report, run.metrics_file]
    assert [path for path in (*wanted, run.metrics_lines, run.config_file) if not path.exists()] == []
    metrics = run.metrics()
    assert {"reconstruction", "levels", "priors", "classification_accuracy_score", "about"} <= metrics.keys()
    assert metrics["seconds"]["total"] > metrics["seconds"]["autoencoder"] > 0


def test_without_a_level_the_priors_of_all_are_trained_coarse_to_fine(copied_run: TrainedRun) -> None:
    run, words = copied_run.run, [f"priors.{level}.training.steps=2" for level in LEVELS]
    shutil.rmtree(run.path / "priors")
    first = run_recipe("train_prior", "--run-dir", run.path, *words)
    assert (first.code, first.err) == (0, "")
    told = ["priors of levels top, bottom, in this order", "prior of level top on", "prior of level bottom on"]
    assert re.findall("training the (.*?(?:order| on))", first.out) == told
    assert {f"prior.{level}" for level in LEVELS} <= run.metrics()["seconds"].keys()
    made = {level: tensors_below(run.prior(level)) for level in LEVELS}
    again = run_recipe("train_prior", "--run-dir", run.path, "--resume")
    assert (again.code, again.out.count("is already trained")) == (0, 2)
    for level in LEVELS:
        alone = run_recipe("train_prior", "--run-dir", run.path, "--level", level, *words)
        assert alone.code == 0
        assert differing(made[level], tensors_below(run.prior(level))) == []


def test_a_run_is_resumed_by_its_command_line(copied_run: TrainedRun, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", _few_steps(copied_run).config)
    words = ("--config", config, "--run-dir", copied_run.run.path, "--resume")
    assert run_recipe("train_autoencoder", *words).code == 0
    assert run_recipe("extract_codes", "--run-dir", copied_run.run.path).code == 0
    assert run_recipe("train_prior", *words, "--level", "top").code == 0


# --- two processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoProcesses:
    """A run whose stages after the first were done by two processes, and what they printed."""

    run: RunFolder
    out: str


@pytest.fixture(scope="module")
def two_processes(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    copied = trained_run.copied(tmp_path_factory.mktemp("two") / "run")
    run = copied.run
    shutil.rmtree(run.codes)
    shutil.rmtree(run.samples)
    run.metrics_file.unlink()
    driver = run.path.parent / "driver.py"
    driver.write_text(DRIVER)
    where = ("--run-dir", str(run.path))
    stages = [("extract_codes", *where), ("sample", *where), ("evaluate", *where)]
    # Last, for samples and numbers are to be those of the priors that one process trained.
    stages += [("train_prior", "--level", level, *where) for level in LEVELS]
    done = _start(driver, RECIPES, json.dumps(stages), processes=2)
    assert done.returncode == 0, done.stderr
    return TwoProcesses(run, done.stdout)


@pytest.mark.processes
def test_the_documented_command_starts_two_processes(trained_run: TrainedRun, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", _few_steps(trained_run).config)
    recipe = RECIPES / "train_autoencoder.py"
    done = _start(recipe, "--config", config, "--run-dir", tmp_path / "run", processes=2)
    assert done.returncode == 0, done.stderr
    # Two of them are one run: had each been a run of its own, both would say so.
    assert done.stdout.count("2 processes on cpu") == 1
    assert "1 process " not in done.stdout
    load_autoencoder(tmp_path / "run" / "autoencoder")


@pytest.mark.processes
def test_every_stage_says_that_there_are_two(two_processes: TwoProcesses) -> None:
    assert two_processes.out.count("2 processes on cpu") == 5
    assert "1 process " not in two_processes.out


@pytest.mark.processes
def test_two_processes_extract_the_codes_that_one_extracts(
    trained_run: TrainedRun, two_processes: TwoProcesses
) -> None:
    assert files_below(two_processes.run.codes) == files_below(trained_run.run.codes)
    assert len(list((two_processes.run.codes / "train").glob("shard-*"))) == 6


@pytest.mark.processes
def test_two_processes_draw_the_samples_that_one_draws(trained_run: TrainedRun, two_processes: TwoProcesses) -> None:
    assert differing(tensors_below(trained_run.run.samples), tensors_below(two_processes.run.samples)) == []
    pictures = [(run.samples / "samples.png").read_bytes() for run in (trained_run.run, two_processes.run)]
    assert pictures[0] == pictures[1]


@pytest.mark.processes
def test_two_processes_measure_what_one_measures(trained_run: TrainedRun, two_processes: TwoProcesses) -> None:
    one, two = (numbers_of(read_json(run.metrics_file, "metrics")) for run in (trained_run.run, two_processes.run))
    assert {"reconstruction.mse", "levels.top.usage", "priors.bottom.held_out_nats"} <= one.keys()
    assert "classification_accuracy_score.generated" in one
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.processes
def test_two_processes_train_priors(trained_run: TrainedRun, two_processes: TwoProcesses) -> None:
    nats = [load_prior(run.prior("top"))[1].held_out_nats for run in (trained_run.run, two_processes.run)]
    # Without drop-out in the network the only difference is the order of sums.
    assert nats[1] == pytest.approx(nats[0], abs=1e-3)
    assert load_prior(two_processes.run.prior("bottom"))[1].held_out_nats is not None


# --- what a person sees where something is wrong ------------------------------------------------------------------


def _edit(file: Path, name: str) -> None:
    tensors = load_file(file)
    tensors[name] = tensors[name] + 1
    save_file(tensors, file)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _first_shard(run: RunFolder) -> Path:
    return sorted((run.codes / "train").glob("shard-*"))[0]


def _another_encoder(run: RunFolder) -> None:
    _edit(run.autoencoder / "model.safetensors", "levels.top.quantizer.head_codebooks.0.vectors")


Damage = Callable[[RunFolder], object]
LATER_STAGES: dict[str, tuple[Damage, list[str], str]] = {
    "no autoencoder": (lambda run: shutil.rmtree(run.autoencoder), ["extract_codes"], "no autoencoder in"),
    "truncated autoencoder": (
        lambda run: _truncate(run.autoencoder / "model.safetensors"),
        ["extract_codes"],
        "autoencoder weights at .*model.safetensors is damaged",
    ),
    "other channels": (
        lambda run: None,
        ["extract_codes", "data.channels=3", "autoencoder.channels=3"],
        r"takes images of 1 channel\(s\); data.channels gives 3",
    ),
    "missing codes": (lambda run: shutil.rmtree(run.codes), ["train_prior", "--level", "top"], "no complete codes in"),
    "missing codes of all levels": (lambda run: shutil.rmtree(run.codes), ["train_prior"], "no complete codes in"),
    "truncated shard": (
        lambda run: _truncate(_first_shard(run)),
        ["train_prior", "--level", "top"],
        "codes in .*shard-00000.safetensors are damaged",
    ),
    "foreign codes": (_another_encoder, ["train_prior", "--level", "top"], "were made by another autoencoder"),
    "wrong level": (
        lambda run: None,
        ["train_prior", "--level", "botom"],
        "no level 'botom'; the levels of .* are top, bottom",
    ),
    "uneven batch": (
        lambda run: None,
        ["train_prior", "--level", "top", "priors.top.training.micro_batches=5"],
        "batch_size must be a multiple of processes times micro_batches, 1 x 5 = 5; received 12",
    ),
    "no priors": (lambda run: shutil.rmtree(run.prior("top")), ["sample"], "train that of top first"),
    "foreign prior": (_another_encoder, ["sample"], "was trained on codes of another autoencoder"),
    "truncated prior": (
        lambda run: _truncate(run.prior("top") / "model.safetensors"),
        ["sample"],
        "prior weights at .* is damaged",
    ),
    "no such class": (
        lambda run: None,
        ["sample", "--classes", "rows,12"],
        "unknown class 12; the classes of this run",
    ),
    "no such seed": (lambda run: None, ["sample", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
    "broken numbers": (lambda run: run.metrics_file.write_text("{"), ["sample"], "metrics at .* cannot be read"),
    "nothing to measure": (lambda run: shutil.rmtree(run.autoencoder), ["evaluate"], "no autoencoder in"),
    "broken configuration": (
        lambda run: run.config_file.write_text("seed: ["),
        ["evaluate"],
        "config.json, line 1 is not valid YAML",
    ),
}


@pytest.mark.parametrize("fault", LATER_STAGES)
def test_a_later_stage_says_what_is_wrong_and_changes_nothing(copied_run: TrainedRun, fault: str) -> None:
    damage, (recipe, *words), sentence = LATER_STAGES[fault]
    damage(copied_run.run)
    before = files_below(copied_run.run.path)
    _assert_refused(run_recipe(recipe, "--run-dir", copied_run.run.path, *words), sentence)
    assert files_below(copied_run.run.path) == before


def _assert_refused(outcome: Outcome, sentence: str) -> None:
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    assert re.search(sentence, outcome.err), outcome.err


def _labelled_arrays(folder: Path) -> None:
    for split, labels in (("train", [0, 1, 5]), ("validation", [0, 1, 0])):
        tensors = {"images": torch.zeros(3, 16, 16, dtype=torch.uint8), "labels": torch.tensor(labels)}
        write_tensors(folder / f"{split}.safetensors", tensors, {"classes": '["cat", "dog"]'})


FIRST_STAGE: dict[str, tuple[list[str], str]] = {
    "unknown field": (
        ["autoencoder_training.stesp=3"],
        r"autoencoder_training\.stesp is not a field .* did you mean autoencoder_training\.steps\?",
    ),
    "image too small": (["data.size=[16, 7]"], "data.size 16x7 is smaller than the coarsest stride 8"),
    "label without a class": (
        ["data.kind=array", "data.train={tmp}/train.safetensors", "data.validation={tmp}/validation.safetensors"],
        "train.safetensors: labels of 2 classes go from 0 to 1, .* received 0 to 5",
    ),
    "no images": (["data.path={tmp}/empty"], "empty must hold images .* found none"),
    "no folder": (["data.path={tmp}/nowhere"], "there is no folder .*nowhere"),
    "uneven batch": (["autoencoder_training.micro_batches=5"], "multiple of processes times micro_batches"),
}


@pytest.mark.parametrize("fault", FIRST_STAGE)
def test_the_first_stage_says_what_is_wrong_and_leaves_no_run(
    trained_run: TrainedRun, tmp_path: Path, fault: str
) -> None:
    words, sentence = FIRST_STAGE[fault]
    (tmp_path / "empty").mkdir()
    _labelled_arrays(tmp_path)
    config = write_config(tmp_path / "config.json", trained_run.config)
    where = ("--config", config, "--run-dir", tmp_path / "run")
    outcome = run_recipe("train_autoencoder", *where, *(word.format(tmp=tmp_path) for word in words))
    _assert_refused(outcome, sentence)
    assert not (tmp_path / "run").exists()


def test_a_shell_sees_the_same(copied_run: TrainedRun) -> None:
    before = files_below(copied_run.run.path)
    failed = _start(RECIPES / "train_prior.py", "--run-dir", copied_run.run.path, "--level", "botom")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no level 'botom'")
    assert "Traceback" not in failed.stderr
    assert files_below(copied_run.run.path) == before
