from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as torch_distributed

from hvq.config import RunConfig
from hvq.config_data import PhotosConfig
from hvq.errors import ConfigurationError, DataError
from recipes import command_line
from recipes.command_line import read_command, recipe_parser, run

ROOT = Path(__file__).parent.parent.parent
DIGITS = ROOT / "recipes" / "configs" / "digits.yaml"
SCRIPT = """
from command_line import read_command, recipe_parser, run

def main():
    command = read_command(recipe_parser("A recipe."))
    print("seed", command.config.seed)

if __name__ == "__main__":
    run(main)
"""


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A recipe, which finds its neighbour as recipes do: by its own folder."""
    (tmp_path / "command_line.py").symlink_to(ROOT / "recipes" / "command_line.py")
    path = tmp_path / "recipe.py"
    path.write_text(SCRIPT)
    return path


def _start(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_arguments_may_stand_in_any_order(tmp_path: Path) -> None:
    parser = recipe_parser("A recipe.")
    parser.add_argument("--level", required=True)
    words = [
        "seed=3",
        "--run-dir",
        str(tmp_path),
        "data.workers=2",
        "--config",
        str(DIGITS),
        "--level",
        "top",
        "seed=5",
    ]
    command = read_command(parser, words)
    assert (command.config.seed, command.config.data.workers) == (5, 2)
    assert command.run_dir == tmp_path
    assert command.options.level == "top"


def test_later_stages_read_what_the_first_left_in_the_run_folder(tmp_path: Path) -> None:
    fields = {"seed": 13, "autoencoder": {"channels": 1, "levels": {"top": {"ratio": 4}}}}
    config = RunConfig.model_validate(fields)
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert read_command(recipe_parser(None), ["--run-dir", str(tmp_path)]).config == config
    named = read_command(recipe_parser(None), ["--run-dir", str(tmp_path), "--config", str(DIGITS)])
    assert named.config.seed == 0


def test_a_recipe_may_have_its_own_defaults(tmp_path: Path) -> None:
    parser = recipe_parser(None, run_dir=tmp_path / "quick", config=DIGITS)
    command = read_command(parser, [])
    assert command.run_dir == tmp_path / "quick"
    assert command.config.data.kind == "digits"


def test_what_an_override_does_besides_is_printed_by_the_main_process_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--run-dir", str(tmp_path), "--config", str(DIGITS), "autoencoder.levels.middle.ratio=1"]
    read_command(recipe_parser(None), words)
    assert capsys.readouterr().out == "override autoencoder.levels.middle.ratio adds level middle to top, bottom\n"
    monkeypatch.setenv("RANK", "1")
    read_command(recipe_parser(None), words)
    assert capsys.readouterr().out == ""


def test_another_kind_by_override(tmp_path: Path) -> None:
    words = ["--run-dir", str(tmp_path), "--config", str(DIGITS), "data.kind=photos", "data.crops_per_photo=7"]
    config = read_command(recipe_parser(None), words).config
    assert isinstance(config.data, PhotosConfig)
    assert config.data.crops_per_photo == 7


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "the following arguments are required: --run-dir"),
        (["--run-dir", "{tmp}", "--levle", "top"], "unrecognized arguments: --levle"),
        (["--run-dir", "{tmp}"], "there is no {tmp}/config.json; name a configuration with --config"),
        (["--run-dir", "{tmp}", "--config", "{tmp}/none.yaml"], "there is no configuration file {tmp}/none.yaml"),
        (["--run-dir", "{tmp}", "--config", str(DIGITS), "sede=3"], "did you mean seed?"),
        (["--run-dir", "{tmp}", "--config", str(DIGITS), "seed"], "an override must look like"),
    ],
)
def test_wrong_arguments_are_configuration_errors(tmp_path: Path, words: list[str], fault: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_command(recipe_parser(None), [word.format(tmp=tmp_path) for word in words])
    assert fault.format(tmp=tmp_path) in str(raised.value)


def test_help_lists_own_arguments_and_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_command(recipe_parser("What it does."), ["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "What it does." in text
    for part in (
        "--config",
        "--run-dir",
        "autoencoder.levels.<level>.ratio=...",
        "data.path=...",
        "K, the number of values of a code",
    ):
        assert part in text


def _raise(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "printed"),
    [
        (lambda: "ignored", 0, ""),
        (_raise(DataError("no images in x")), 1, "error: no images in x\n"),
        (_raise(ConfigurationError("seed: expected integer")), 1, "error: seed: expected integer\n"),
        (_raise(KeyboardInterrupt()), 130, ""),
    ],
)
def test_what_a_person_can_mend_is_a_sentence_and_an_exit_code(
    main: Callable[[], object], code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug")])
def test_what_a_person_cannot_mend_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        run(_raise(error))


def test_other_processes_let_the_main_one_speak_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(command_line.time, "sleep", slept.append)
    with pytest.raises(SystemExit):
        run(_raise(DataError("no images in x")))
    assert slept == [command_line.GRACE_SECONDS]
    assert capsys.readouterr().err == "error in process 3: no images in x\n"


def test_where_processes_work_together_one_soon_speaks_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(command_line.time, "sleep", slept.append)
    monkeypatch.setattr(torch_distributed, "is_initialized", lambda: True)
    with pytest.raises(SystemExit):
        run(_raise(DataError("image 5 is broken")))
    assert slept == [command_line.GRACE_IN_STEP_SECONDS]
    assert capsys.readouterr().err == "error in process 3: image 5 is broken\n"


def test_another_process_that_is_lost_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(_raise(RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9")))
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: another process of this run has ended; see what it said")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(_raise(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


def test_a_recipe_runs_under_plain_python(script: Path) -> None:
    done = _start(script, "--run-dir", script.parent / "run", "--config", DIGITS, "seed=7")
    assert (done.returncode, done.stdout) == (0, "seed 7\n")
    failed = _start(script, "--run-dir", script.parent / "run", "--config", DIGITS, "sede=7")
    assert failed.returncode == 1
    assert failed.stderr == "error: sede is not a field of the configuration; did you mean seed?\n"


ONE_ALONE = """
import os
from command_line import read_command, recipe_parser, run
from hvq.errors import DataError
from hvq.storage import RunFolder
from hvq.training.processes import make_accelerator

def main():
    command = read_command(recipe_parser("A recipe."))
    accelerator = make_accelerator(command.config, RunFolder(command.run_dir))
    if os.environ["RANK"] == "1":
        raise DataError("image 5 is broken")
    accelerator.wait_for_everyone()

if __name__ == "__main__":
    run(main)
"""


@pytest.mark.processes
def test_a_fault_of_one_process_ends_all_under_a_launcher(script: Path) -> None:
    script.write_text(ONE_ALONE)
    words = ["--run-dir", script.parent / "run", "--config", DIGITS]
    failed = _start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, *words)
    assert failed.returncode != 0
    assert failed.stderr.count("error in process 1: image 5 is broken\n") == 1
    assert "DataError" not in failed.stderr


@pytest.mark.processes
def test_a_fault_of_all_processes_is_said_once(script: Path) -> None:
    words = ["--run-dir", script.parent / "run", "--config", DIGITS, "sede=7"]
    failed = _start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, *words)
    assert failed.returncode != 0
    assert failed.stderr.count("sede is not a field") == 1
    assert "HVQError" not in failed.stderr


# --- what comes next ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "python"),
        ({"LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "3"}, "torchrun --nproc_per_node 3"),
        (
            {"LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "3", "ACCELERATE_USE_CPU": "true"},
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 3",
        ),
        # What started several machines is not for this one to say.
        ({"LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6"}, "python"),
    ],
)
def test_the_next_command_is_one_to_type(
    environment: dict[str, str], launcher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "ACCELERATE_USE_CPU", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["recipes/train_prior.py", "--run-dir", "elsewhere"])
    command_line.say_next("sample.py", "--run-dir", Path("my runs/a"))
    assert capsys.readouterr().out == f"next: {launcher} recipes/sample.py --run-dir 'my runs/a'\n"
