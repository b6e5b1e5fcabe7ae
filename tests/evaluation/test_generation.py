"""Samples are the same however many processes share the work."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvq.data.pixels import unit_to_bytes
from hvq.distributed import Reduction
from hvq.errors import DataError
from hvq.evaluation.generation import Generated, covered_cells, decode_images, decode_kept, generate
from hvq.priors import SamplingOptions
from hvq.storage import load_hierarchy
from tests.runs import TrainedRun
from tests.sizes import LargestFloat
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


def test_bytes_are_those_of_the_images_and_a_chunk_at_most_is_in_floating_point(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    codes = {"bottom": torch.randint(13, (211, 4, 4)), "top": torch.randint(11, (211, 2, 2))}
    expected = unit_to_bytes(decode_images(hierarchy, codes, chunk_size=5))
    with LargestFloat() as largest:
        found = decode_kept(hierarchy, codes, chunk_size=5)
    assert torch.equal(found, expected)
    assert largest.values < found.numel()
    without = {name: code[:0] for name, code in codes.items()}
    assert decode_kept(hierarchy, without, chunk_size=5, size=(9, 17)).shape == (0, 1, 9, 17)
    with pytest.raises(DataError, match="of the same images at every level; received 211 of top, 3 of bottom"):
        decode_kept(hierarchy, {**codes, "bottom": codes["bottom"][:3]}, chunk_size=5)


def test_a_sample_is_its_number(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    order = np.random.default_rng(0).permutation(len(LABELS)).tolist()
    plain, mixed = (
        generate(hierarchy, samples=numbers, labels=[LABELS[i] for i in numbers], seed=2, chunk_size=5).images
        for numbers in (range(len(LABELS)), order)
    )
    assert torch.equal(mixed, plain[order])


def test_a_bar_can_count_positions(trained_run: TrainedRun) -> None:
    calls: list[str] = []
    generate(
        load_hierarchy(trained_run.run),
        samples=range(11),
        labels=None,
        seed=0,
        chunk_size=5,
        after_position=calls.append,
    )
    assert calls == ["top"] * 3 * 2 * 2 + ["bottom"] * 3 * 4 * 4


@pytest.mark.parametrize("processes", [1, 3])
def test_a_level_is_whole_on_every_process_before_the_next_is_begun(trained_run: TrainedRun, processes: int) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    alone = generate(hierarchy, samples=range(23), labels=LABELS, seed=2, chunk_size=5)

    def draw(reduction: Reduction) -> list[tuple[str, bool]]:
        events: list[tuple[str, bool]] = []
        generate(
            hierarchy,
            samples=range(23),
            labels=LABELS,
            seed=2,
            chunk_size=5,
            reduction=reduction,
            after_level=lambda name, codes: events.append((name, torch.equal(codes, alone.codes[name]))),
        )
        return events

    assert run_in_threads(draw, processes) == [[("top", True), ("bottom", True)]] * processes


@pytest.mark.parametrize("processes", [1, 2])
def test_given_and_fixed_codes_are_shared_out_with_their_samples(trained_run: TrainedRun, processes: int) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    top, bottom = torch.randint(11, (23, 2, 2)), torch.randint(13, (23, 4, 4))
    mask = torch.rand(23, 4, 4) < 0.5

    def draw(reduction: Reduction) -> Generated:
        return generate(
            hierarchy,
            samples=range(23),
            labels=LABELS,
            seed=2,
            chunk_size=5,
            given={"top": top},
            fixed={"bottom": (bottom, mask)},
            reduction=reduction,
        )

    alone = draw(Reduction())
    for found in run_in_threads(draw, processes):
        assert list(found.codes) == ["top", "bottom"]
        assert torch.equal(found.codes["top"], top)
        assert torch.equal(found.codes["bottom"][mask], bottom[mask])
        assert torch.equal(found.codes["bottom"], alone.codes["bottom"])
        assert torch.equal(found.images, alone.images)


def test_codes_that_are_not_those_of_the_hierarchy_are_refused(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    for codes, fault in (
        ({"botom": torch.zeros(1, 4, 4)}, "given codes of level botom are of no level; the levels are top, bottom"),
        ({"top": torch.zeros(1, 4, 4, dtype=torch.int64)}, r"level top must be integers \[1, 2, 2\]"),
        ({"bottom": torch.full((1, 4, 4), 13)}, r"level bottom must be in 0 \.\. 12; received 13 \.\. 13"),
    ):
        with pytest.raises(DataError, match=fault):
            generate(hierarchy, samples=[0], labels=None, seed=0, chunk_size=5, given=codes)


def test_options_of_levels_that_are_given_do_nothing(copied_run: TrainedRun) -> None:
    shutil.rmtree(copied_run.run.prior("top"))
    hierarchy, top = load_hierarchy(copied_run.run), torch.randint(11, (3, 2, 2))
    plain, told = (
        generate(hierarchy, samples=range(3), labels=None, seed=2, chunk_size=5, given={"top": top}, options=options)
        for options in (None, {"top": SamplingOptions(temperature=0.0)})
    )
    assert torch.equal(plain.images, told.images)
    with pytest.raises(DataError, match="options name botom, which is not a level; the levels are top, bottom"):
        generate(
            hierarchy,
            samples=[],
            labels=[],
            seed=2,
            chunk_size=5,
            given={"top": top[:0]},
            options={"botom": SamplingOptions()},
        )


@given(data=st.data(), stride=st.integers(1, 5), size=st.tuples(st.integers(5, 11), st.integers(5, 13)))
def test_cells_are_kept_where_every_pixel_is(data: st.DataObject, stride: int, size: tuple[int, int]) -> None:
    height, width = size
    hidden = data.draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=4))
    mask = torch.ones(2, height, width, dtype=torch.bool)
    for row, column in hidden:
        mask[1, row, column] = False
    grid = (-(-height // stride), -(-width // stride))

    def reflected(place: int, length: int) -> int:
        return place if place < length else 2 * (length - 1) - place

    expected = [
        [
            all(
                bool(mask[1, reflected(i * stride + y, height), reflected(j * stride + x, width)])
                for y in range(stride)
                for x in range(stride)
            )
            for j in range(grid[1])
        ]
        for i in range(grid[0])
    ]
    found = covered_cells(mask, grid=grid, stride=stride)
    assert found[0].all()
    assert found[1].tolist() == expected


def test_cells_of_signals_and_volumes_are_kept_where_all_of_them_is() -> None:
    mask = torch.ones(1, 11, dtype=torch.bool)
    mask[0, [4, 10]] = False
    assert covered_cells(mask, grid=(4,), stride=3).tolist() == [[True, False, True, False]]
    space = torch.ones(1, 5, 4, 6, dtype=torch.bool)
    space[0, 2, 1, 5] = False
    found = covered_cells(space, grid=(3, 2, 3), stride=2)
    assert (~found).nonzero().tolist() == [[0, 1, 0, 2]]
