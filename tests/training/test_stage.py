"""Processes that do not list the same images stop before they train or encode, all with the same sentence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hvq.config import RunConfig
from hvq.data import Sources, TensorImages
from hvq.distributed import current_reduction
from hvq.errors import DataError
from hvq.storage import RunFolder
from hvq.training import extract_codes, fit_autoencoder
from hvq.training.processes import make_accelerator
from hvq.training.stage import told_by_the_first
from tests.processes import end_in_processes, run_in_processes
from tests.runs import TrainedRun

IMAGES = 7
SENTENCE = (
    r"all processes of a run must find the same images; of 7 in the first process, those are others: "
    r"\d+ in process 1; have all of them read the same files"
)


def images(change: str = "") -> TensorImages:
    count = IMAGES - (change == "length")
    labels = np.arange(count) % 2
    labels[3] += change == "label"
    names = [f"{index}{'x' * (change == 'name' and index == 5)}" for index in range(count)]
    classes = ("cat", "dog", "emu"[:: -1 if change == "class" else 1])
    return TensorImages(torch.zeros(count, 1, 16, 16, dtype=torch.uint8), labels=labels, names=names, classes=classes)


def _told(change: str, contents: bool) -> str:
    reduction = current_reduction()
    source = images(change if reduction.rank == 1 else "")
    try:
        return told_by_the_first(source, reduction, torch.device("cpu"), contents=contents)
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("contents", [False, True])
def test_what_processes_list_is_compared(contents: bool) -> None:
    assert run_in_processes(_told, 2, "", contents) == [images().fingerprint(contents=contents)] * 2


@pytest.mark.parametrize("change", ["length", "name", "label", "class"])
def test_all_processes_refuse_what_one_lists_otherwise(change: str) -> None:
    first, second = run_in_processes(_told, 2, change, True)
    assert first == second
    assert re.match(SENTENCE, first)


def _stage(stage: str, folder: str, config: str) -> None:
    run = RunFolder(Path(folder))
    accelerator = make_accelerator(RunConfig.model_validate_json(config), run)
    source = images("name" if accelerator.process_index == 1 else "")
    call = extract_codes if stage == "codes" else fit_autoencoder
    call(
        RunConfig.model_validate_json(config),
        run,
        accelerator=accelerator,
        sources=Sources(train=source, validation=images()),
    )


@pytest.mark.parametrize("stage", ["autoencoder", "codes"])
def test_a_stage_ends_in_every_process_where_lists_differ(copied_run: TrainedRun, stage: str) -> None:
    ended = end_in_processes(_stage, 2, stage, str(copied_run.run.path), copied_run.config.model_dump_json())
    assert [process.code for process in ended] == [1, 1]
    for process in ended:
        assert len(process.errors) == 1
        assert re.search(SENTENCE, process.errors[0])
