"""What `pip install hvq` brings is enough to train, encode and sample; what else there is, an extra brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT, Outcome, run_recipe

# What is imported, of the packages of all extras that some room uses.
EXTRAS = (
    "matplotlib",
    "jinja2",
    "sklearn",
    "skimage",
    "webdataset",
    "datasets",
    "pyarrow",
    "tensorboard",
    "wandb",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "faiss",
)
# Other packages look for these by their metadata, and would import what they find.
WITHOUT = f"""
import importlib.metadata, sys
names, found = {EXTRAS!r}, importlib.metadata.distribution
def distribution(name):
    if name.lower() in names:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.distribution = distribution
sys.modules |= dict.fromkeys(names)
"""


def _run(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", WITHOUT + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_rooms_import_without_any_extra(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, hvq
modules = [module.name for module in pkgutil.walk_packages(hvq.__path__, "hvq.")]
for module in modules:
    if "triton" not in module:
        importlib.import_module(module)
print(len(modules))
"""
    assert int(_run(code, tmp_path)) > 100


def test_a_whole_run_needs_no_extra(tmp_path: Path) -> None:
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from hvq.errors import ConfigurationError
from hvq.evaluation.run_report import write_run_report
from tests.runs import train_everything
trained = train_everything(Path({str(tmp_path)!r}))
try:
    write_run_report(trained.config, trained.run, trained.sources)
except ConfigurationError as error:
    print(error)
"""
    assert _run(code, tmp_path).strip().endswith('which is not installed: pip install "hvq[report]"')
    assert (tmp_path / "run" / "samples" / "samples.png").exists()


@pytest.mark.parametrize("recipe", ["quickstart", "evaluate"])
def test_what_ends_with_a_report_says_at_once_that_it_cannot_be_drawn(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    config = ROOT / "recipes" / "configs" / "digits.yaml"
    outcome = run_recipe(recipe, "--run-dir", tmp_path / "run", "--config", config)
    sentence = 'plots are drawn with matplotlib, which is not installed: pip install "hvq[report]"'
    assert outcome == Outcome(1, "", f"error: {sentence}\n")
    assert list(tmp_path.iterdir()) == []
