"""The command line that draws samples: going on from finished levels, and choosing among candidates."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hvq.evaluation.sample_files import TENSORS, read_samples_file
from hvq.evaluation.samples import STAGE
from hvq.files import read_tensors, write_tensors
from hvq.storage import load_hierarchy
from tests.runs import RECIPES, ROOT, Outcome, TrainedRun, files_below, run_recipe

# Kills its own process as the first sampling step of a number begins, and is the recipe until then.
KILLED = """
import os, runpy, signal, sys

from hvq.priors import Prior

recipe, step, sys.argv[1:] = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
original, steps = Prior.step, iter(range(10**6))


def killing(*words):
    if next(steps) == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*words)


Prior.step = killing
sys.path.insert(0, os.path.dirname(recipe))
runpy.run_path(recipe, run_name="__main__")
"""


def _refused(outcome: Outcome, sentence: str) -> bool:
    return outcome.code == 1 and bool(re.fullmatch(rf"error: .*{sentence}.*\n", outcome.err))


@pytest.mark.processes
def test_a_killed_call_is_gone_on_with(trained_run: TrainedRun, copied_run: TrainedRun) -> None:
    run = copied_run.run
    shutil.rmtree(run.samples)
    # 15 samples are 3 chunks of 7: 3 x 4 codes of the top level, then 3 x 16 of the bottom one.
    words = [sys.executable, "-c", KILLED, str(RECIPES / "sample.py"), "33", "--run-dir", str(run.path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not run.samples.exists()
    left = run.checkpoint(STAGE)
    assert files_below(left).keys() == {TENSORS}
    assert list(read_samples_file(left, load_hierarchy(run)).codes) == ["top"]
    outcome = run_recipe("sample", "--run-dir", run.path, "--from-codes", left)
    assert (outcome.code, outcome.err) == (0, "")
    assert files_below(run.samples) == files_below(trained_run.run.samples)
    assert not left.exists()


def test_what_an_earlier_call_left_is_pointed_out(copied_run: TrainedRun) -> None:
    left = copied_run.run.checkpoint(STAGE)
    shutil.copytree(copied_run.run.samples, left)
    outcome = run_recipe("sample", "--run-dir", copied_run.run.path)
    assert f"levels that an earlier call left would be taken with --from-codes {left}" in outcome.out
    assert outcome.code == 0
    assert not left.exists()


def test_what_another_call_left_is_pointed_out_and_stays(copied_run: TrainedRun) -> None:
    left, samples = copied_run.run.checkpoint(STAGE), copied_run.run.samples
    shutil.copytree(samples, left)
    outcome = run_recipe("sample", "--run-dir", copied_run.run.path, "--from-codes", samples, "--keep", "0.4")
    assert f"drawing what is not in {samples}; levels that an earlier call left would be taken with" in outcome.out
    assert "6 samples, the surest of 15 candidates, are in" in outcome.out
    assert left.exists()
    outcome = run_recipe("sample", "--run-dir", copied_run.run.path, "--from-codes", left)
    assert (outcome.code, "earlier call" in outcome.out) == (0, False)
    assert not left.exists()


def test_finer_levels_are_drawn_anew_from_the_same_coarse_ones(copied_run: TrainedRun, tmp_path: Path) -> None:
    before, metadata = read_tensors(copied_run.run.samples / TENSORS, "samples")
    write_tensors(tmp_path / "top.safetensors", {name: before[name] for name in ("codes.top", "labels")}, metadata)
    words = ("--from-codes", tmp_path / "top.safetensors", "priors.bottom.sampling.temperature=0")
    outcome = run_recipe("sample", "--run-dir", copied_run.run.path, *words)
    assert (outcome.code, outcome.err) == (0, "")
    after, _ = read_tensors(copied_run.run.samples / TENSORS, "samples")
    assert torch.equal(after["codes.top"], before["codes.top"])
    assert torch.equal(after["labels"], before["labels"])
    assert not torch.equal(after["codes.bottom"], before["codes.bottom"])


def test_the_surest_are_kept(copied_run: TrainedRun) -> None:
    words = ("--classes", "rows,block", "sampling.samples_per_class=3", "--keep", "0.5")
    outcome = run_recipe("sample", "--run-dir", copied_run.run.path, *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert "6 samples, the surest of 12 candidates, are in" in outcome.out
    tensors, _ = read_tensors(copied_run.run.samples / TENSORS, "samples")
    assert tensors["labels"].tolist() == [2, 2, 2, 0, 0, 0]
    numbers = tensors["numbers"].tolist()
    assert numbers == sorted(numbers)
    assert [n // 6 for n in numbers] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--from-codes", "{run}/nowhere"), "no samples at .*nowhere"),
        (("--from-codes", "{run}/codes"), "no samples at .*codes/samples.safetensors"),
        (("--from-codes", "{run}/autoencoder/model.safetensors"), "does not say which autoencoder its codes are of"),
        (("--from-codes", "{run}/samples", "--seed", "4"), "are of seed 3; asked for is seed 4"),
        (("--from-codes", "{run}/samples", "--classes", "rows"), "15 samples in .* are not of the 5 classes"),
        (("--keep", "0"), "share of candidates to keep must be above 0 and at most 1; received 0"),
        (("--keep", "some"), "argument --keep: invalid float value: 'some'"),
        (("--keep", "0.5", "data.path={run}/nowhere"), "there is no folder .*nowhere"),
        (("priors.top.sampling.guidance=-1",), "priors.top.sampling.guidance"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    copied_run: TrainedRun, words: tuple[str, ...], sentence: str
) -> None:
    before = files_below(copied_run.run.path)
    filled = [word.format(run=copied_run.run.path) for word in words]
    outcome = run_recipe("sample", "--run-dir", copied_run.run.path, *filled)
    assert _refused(outcome, sentence), outcome.err
    assert files_below(copied_run.run.path) == before
