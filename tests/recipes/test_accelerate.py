"""Ready-made configurations that accelerate takes, a Slurm script that hands signals on, and the page of both."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config import load_config_from_file

from tests.runs import RECIPES, ROOT, TrainedRun

FOLDER = RECIPES / "accelerate"
CONFIGURATIONS = {path.name for path in FOLDER.glob("*.yaml")}


def test_every_configuration_is_one_of_accelerate() -> None:
    loaded = {name: load_config_from_file(str(FOLDER / name)) for name in CONFIGURATIONS}
    said = {name: (config.distributed_type.value, config.num_processes) for name, config in loaded.items()}
    assert said == {
        "one-gpu.yaml": ("NO", 1),
        "8-gpus.yaml": ("MULTI_GPU", 8),
        "several-nodes.yaml": ("MULTI_GPU", 32),
        "fsdp2.yaml": ("FSDP", 8),
        "two-cpu-processes.yaml": ("MULTI_GPU", 2),
    }
    assert loaded["several-nodes.yaml"].num_machines == 4
    assert loaded["fsdp2.yaml"].fsdp_config["fsdp_version"] == 2


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["two-cpu-processes.yaml"], "2 processes on cpu, precision no"),
        (["fsdp2.yaml", "--num_processes", "2"], "2 processes on cpu, in shards, precision bf16"),
    ],
)
def test_a_recipe_runs_with_them(trained_run: TrainedRun, tmp_path: Path, words: list[str], said: str) -> None:
    run = trained_run.copied(tmp_path / "run").run
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / words[0]), *words[1:]]
    recipe = [str(RECIPES / "train_prior.py"), "--run-dir", str(run.path), "--level", "bottom"]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, *recipe, "priors.bottom.training.steps=3"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout
    assert [row["step"] for row in run.lines() if row["stage"] == "prior.bottom" and "loss" in row] == [1, 2, 3]


# --- Slurm ------------------------------------------------------------------------------------------------------------


def _program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Programs that stand for Slurm's: two processes on two nodes, one after the other; calls are noted."""
    programs = tmp_path / "programs"
    programs.mkdir()
    _program(
        programs / "scontrol",
        f'echo "scontrol $*" >> {tmp_path}/calls\nif [ "$1" = show ]; then echo first; echo second; fi',
    )
    _program(
        programs / "srun",
        'trap \'kill -TERM "$child"; wait "$child"; exit $?\' TERM\nshift\n'
        'for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=0 "$@" & child=$!; wait "$child" || exit $?; done',
    )
    _program(programs / "python", f'exec {sys.executable} "$@"')
    variables = {"SLURM_JOB_ID": "40007", "SLURM_JOB_NODELIST": "nodes", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
    return {**os.environ, **variables, "PATH": f"{programs}:{os.environ['PATH']}"}


def _recipe(path: Path, body: str) -> Path:
    path.write_text(f"import os, signal, sys, time\n{body}\n")
    return path


def test_slurm_gives_every_process_its_place(cluster: dict[str, str], tmp_path: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    recipe = _recipe(tmp_path / "recipe.py", f"print(*map(os.environ.get, {names.split()}), *sys.argv[1:], flush=True)")
    done = subprocess.run(
        ["bash", FOLDER / "slurm.sh", recipe, "--run-dir", "with space"],
        env=cluster,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [f"{rank} 0 2 1 first 20007 --run-dir with space --resume" for rank in (0, 1)]
    assert done.stdout.splitlines() == lines
    assert "requeue" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("code", [143, 1])
def test_a_signal_reaches_training_and_the_job_is_queued_again_where_it_ended_as_it_should(
    cluster: dict[str, str], tmp_path: Path, code: int
) -> None:
    recipe = _recipe(
        tmp_path / "recipe.py",
        f"""
def end(*_):
    time.sleep(0.3)
    open({str(tmp_path / "checkpoint")!r}, "w").close()
    sys.exit({code})
signal.signal(signal.SIGTERM, end)
print("training", flush=True)
time.sleep(30)
""",
    )
    job = subprocess.Popen(["bash", FOLDER / "slurm.sh", recipe], env=cluster, stdout=subprocess.PIPE, text=True)
    assert job.stdout
    assert job.stdout.readline() == "training\n"
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == code
    assert (tmp_path / "checkpoint").exists()
    assert ("scontrol requeue 40007" in (tmp_path / "calls").read_text()) == (code == 143)


def test_a_stage_that_fails_fails_the_job(cluster: dict[str, str], tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "recipe.py", "sys.exit(7)")
    done = subprocess.run(["bash", FOLDER / "slurm.sh", recipe], env=cluster, check=False)
    assert done.returncode == 7
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_slurm_signals_the_script_in_time() -> None:
    settings = re.findall(r"^#SBATCH (.*)$", (FOLDER / "slurm.sh").read_text(), flags=re.MULTILINE)
    assert {"--signal=B:TERM@300", "--requeue"} <= set(settings)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_names_every_configuration() -> None:
    assert set(re.findall(r"`([\w-]+\.yaml)`", (FOLDER / "README.md").read_text())) == CONFIGURATIONS
