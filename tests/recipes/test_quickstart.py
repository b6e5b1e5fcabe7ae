"""`quickstart.py --data`: any folder of pictures to a report, by what it chooses itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvq.config_data import FolderConfig
from hvq.pipeline import HierarchicalVQ
from hvq.storage import RunFolder
from tests.processes import free_port
from tests.runs import CLASSES, RECIPES, ROOT, files_below, run_recipe, write_images

# Nobody would wait for more in a test; all else is as it is chosen.
HASTY = ("evaluation.generated_per_class=2", "sampling.samples_per_class=2", "extraction.augmented_epochs=1")
TINY = ("autoencoder.levels.top.width=8", "autoencoder.levels.bottom.width=8", "autoencoder.decoder.width=8")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder, str]:
    """A folder of pictures, a run of a moment on it, and what a person saw."""
    folder = tmp_path_factory.mktemp("quickstart")
    images, run = write_images(folder / "images"), RunFolder(folder / "run")
    outcome = run_recipe("quickstart", "--data", images, "--minutes", "0.01", "--run-dir", run.path, *HASTY, "seed=5")
    assert (outcome.code, outcome.err) == (0, "")
    return images, run, outcome.out


def test_a_folder_becomes_a_report(chosen: tuple[Path, RunFolder, str]) -> None:
    images, run, out = chosen
    config = run.load_config()
    assert isinstance(config.data, FolderConfig)
    assert (config.data.path, config.data.size, config.data.channels) == (str(images), (16, 16), 1)
    assert (config.seed, config.sampling.samples_per_class) == (5, 2)
    assert config.autoencoder_training.steps == 20
    assert "<html" in run.report.read_text()
    assert {"reconstruction", "levels", "priors", "generation"} <= run.metrics().keys()
    model = HierarchicalVQ.from_pretrained(run.path)
    assert model.classes == CLASSES
    assert model.sample([1], seed=3).shape == (1, 1, 16, 16)
    assert out.count("images of 16x16: ") == 1


def test_it_says_what_it_chose_and_what_share_goes_where(chosen: tuple[Path, RunFolder, str]) -> None:
    out = chosen[2]
    assert "choosing a run of 0.01 minutes for the 70 images in" in out
    for words in (
        "1 channel(s): ",
        "3 classes: ",
        "levels of codes top 4x4, bottom 8x8",
        "20 steps of the autoencoder",
    ):
        assert words in out
    assert f"set by hand: {' '.join(HASTY)} seed=5" in out
    assert "this is more than the 0.01 minutes asked for" in out
    shares = out[out.index("choosing ", out.index("  of about")) :].splitlines()[0]
    assert [part.split(" ")[0] for part in shares.split(", ")] == [
        *("choosing", "autoencoder", "codes", "prior", "prior", "samples", "evaluation", "report")
    ]
    assert abs(sum(int(part.split(" ")[-2]) for part in shares.split(", ")) - 100) <= 4


def test_resume_takes_what_was_chosen_before(chosen: tuple[Path, RunFolder, str]) -> None:
    images, run, _ = chosen
    before = run.config_file.read_bytes()
    weights = files_below(run.autoencoder)
    words = ("--data", images, "--minutes", "500", "--run-dir", run.path, "--resume")
    outcome = run_recipe("quickstart", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert "going on with what was chosen before" in outcome.out
    assert "choosing a run" not in outcome.out
    assert outcome.out.count("is already trained") == 3
    assert run.config_file.read_bytes() == before
    assert files_below(run.autoencoder) == weights


REFUSED = {
    "minutes alone": (["--minutes", "3"], "--minutes goes with --data"),
    "a configuration too": (["--data", "{images}", "--config", "x.yaml"], "leave one of them out"),
    "no time": (["--data", "{images}", "--minutes", "0"], "must be more than 0"),
    "no number": (["--data", "{images}", "--minutes", "nan"], "must be more than 0"),
    "no folder": (["--data", "{images}/nowhere"], "there is no folder"),
    "few images": (["--data", "{images}/validation/rows"], "must hold 20 images to train on at least; found 7"),
    "another kind of data": (["--data", "{images}", "data.kind=digits"], "leave it out, or name a configuration"),
    "unknown field": (["--data", "{images}", "data.sise=[8, 8]"], "did you mean data.size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(
    chosen: tuple[Path, RunFolder, str], tmp_path: Path, case: str
) -> None:
    words, sentence = REFUSED[case]
    outcome = run_recipe(
        "quickstart", "--run-dir", tmp_path / "run", *(word.format(images=chosen[0]) for word in words)
    )
    assert outcome.code == 1
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_two_processes_take_the_choice_of_the_first(chosen: tuple[Path, RunFolder, str], tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    words = ["--data", chosen[0], "--minutes", "0.01", "--run-dir", tmp_path / "run", *HASTY, *TINY]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, *map(str, (RECIPES / "quickstart.py", *words))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("choosing a run of") == 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["autoencoder_training"]["batch_size"] % 2 == 0
    assert (tmp_path / "run" / "report.html").exists()
