"""Extraction from the command line: killed and resumed, and on a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from hvq.data import CodeFolder
from hvq.errors import CheckpointError
from tests.disks import largest_file
from tests.runs import RECIPES, ROOT, TrainedRun, files_below, rewrite_codes, run_recipe

# The recipe, but that the process is gone as it is about to rename the n-th file that it has written.
KILLED = """
import os, runpy, signal, sys

recipes, left, *words = sys.argv[1:]
left, original = int(left), os.replace

def replace(*paths):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    original(*paths)

os.replace = replace
sys.path.insert(0, recipes)
sys.argv = ["extract_codes", *words]
runpy.run_path(f"{recipes}/extract_codes.py", run_name="__main__")
"""


def _old(run: TrainedRun) -> None:
    for split in ("train", "validation"):
        rewrite_codes(run.run, split, encoder_hash="old")


# After four files of codes; and between the two renames that put the training codes in their place.
@pytest.mark.processes
@pytest.mark.parametrize(("changes", "found"), [(5, "old"), (12, None)])
def test_killed_and_resumed(copied_run: TrainedRun, changes: int, found: str | None) -> None:
    run = copied_run.run
    expected = files_below(run.codes)
    _old(copied_run)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", KILLED, str(RECIPES), str(changes), "--run-dir", str(run.path)]
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    if found is None:
        with pytest.raises(CheckpointError, match="go on with --resume"):
            CodeFolder(run.codes, "train")
    else:
        assert CodeFolder(run.codes, "train").encoder_hash == found
    assert CodeFolder(run.codes, "validation").encoder_hash == "old"
    resumed = run_recipe("extract_codes", "--run-dir", run.path, "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert f"codes of train: {4 if found else 6} of 6 files are there already" in resumed.out
    assert files_below(run.codes) == expected


def test_a_full_disk_is_a_sentence_and_what_was_there_stays(copied_run: TrainedRun) -> None:
    run = copied_run.run
    expected = files_below(run.codes)
    _old(copied_run)
    with largest_file(700):
        failed = run_recipe("extract_codes", "--run-dir", run.path)
    assert failed.code == 1
    assert failed.err.startswith(f"error: {run.codes}/.train.partial")
    assert "cannot be written: " in failed.err
    assert "File too large" in failed.err
    assert failed.err.count("\n") == 1
    assert CodeFolder(run.codes, "train").encoder_hash == "old"
    assert not list(run.codes.rglob("*.safetensors.*.partial"))
    assert run_recipe("extract_codes", "--run-dir", run.path, "--resume").code == 0
    assert files_below(run.codes) == expected
