"""Samples are the same however many processes share the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hvq.distributed import Reduction
from hvq.evaluation.generation import Generated, generate
from hvq.storage import load_hierarchy
from tests.runs import TrainedRun
from tests.threads import run_in_threads

LABELS = [i % 3 for i in range(23)]


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_the_work_and_all_get_everything(trained_run: TrainedRun, processes: int) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    # In another order and with gaps: a sample's number is its own.
    numbers = [(7 * i) % 101 for i in range(len(LABELS))]

    def draw(reduction: Reduction) -> Generated:
        return generate(hierarchy, samples=numbers, labels=LABELS, seed=2, chunk_size=5, reduction=reduction)

    (alone,) = run_in_threads(draw, 1)
    assert alone.images.shape == (23, 1, 16, 16)
    assert alone.images.dtype == torch.uint8
    for shared in run_in_threads(draw, processes):
        assert torch.equal(shared.images, alone.images)
        assert all(torch.equal(shared.codes[name], alone.codes[name]) for name in ("top", "bottom"))


def test_a_sample_is_its_number(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    order = np.random.default_rng(0).permutation(len(LABELS)).tolist()
    plain, mixed = (
        generate(hierarchy, samples=numbers, labels=[LABELS[i] for i in numbers], seed=2, chunk_size=5).images
        for numbers in (range(len(LABELS)), order)
    )
    assert torch.equal(mixed, plain[order])


def test_a_bar_can_count_positions(trained_run: TrainedRun) -> None:
    calls: list[None] = []
    generate(
        load_hierarchy(trained_run.run),
        samples=range(11),
        labels=None,
        seed=0,
        chunk_size=5,
        after_position=lambda: calls.append(None),
    )
    assert len(calls) == 3 * (2 * 2 + 4 * 4)
