"""What an extractor sees is the same for any chunk size and number of processes, and so is what follows from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hvq.config import RunConfig
from hvq.distributed import Reduction, current_reduction
from hvq.evaluation.extractors import Extracted
from hvq.evaluation.measure_features import build_extractor, measure_generation, measure_rfid, precision_recall, see
from hvq.evaluation.precision_recall import ManifoldPrecisionRecall
from hvq.storage import RunFolder
from tests.processes import run_in_processes
from tests.sizes import LargestBytes

CPU, HOW = torch.device("cpu"), "in one way"


class _Pixels:
    """Sees a few pixels, and how they compare."""

    kind, name = "pixels", "three pixels"

    def __call__(self, images: Tensor) -> Extracted:
        features = images[:, 0, 0, :3].float() / 255
        return Extracted(features, (4 * features).softmax(1))


def _images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200 + 20 * seed, (count, 1, 8, 8), generator=generator).byte()


def _measured(chunk_size: int, reduction: Reduction) -> dict[str, object]:
    training, held_out, generated = (
        see(_Pixels(), _images(count, seed), chunk_size=chunk_size, device=CPU, reduction=reduction)
        for seed, count in enumerate((41, 23, 31))
    )
    generation = measure_generation(_Pixels(), training, held_out, generated, neighbours=2, seed=3, how=HOW)
    rfid = measure_rfid(_Pixels(), held_out, generated)
    return {**generation.numbers["generation"], **rfid.numbers["reconstruction"]}


def test_every_image_is_seen_once_and_in_order() -> None:
    images = _images(23, 1)
    seen = see(_Pixels(), images, chunk_size=5, device=CPU, reduction=Reduction())
    assert seen.numbers.tolist() == list(range(23))
    assert seen.total == 23
    torch.testing.assert_close(seen.features, images[:, 0, 0, :3].double() / 255, rtol=1e-6, atol=0)
    some = seen.among(torch.tensor([3, 7, 11]))
    assert torch.equal(some.features, seen.features[[3, 7, 11]])
    assert some.total == 3
    assert len(seen.spread(7).features) == seen.spread(7).total == 7


def test_no_images_are_copied_but_those_of_a_chunk() -> None:
    images = _images(211, 1)
    with LargestBytes() as largest:
        see(_Pixels(), images, chunk_size=5, device=CPU, reduction=Reduction())
    assert largest.values == 5 * 64


def test_precision_and_recall_are_of_as_many_of_each() -> None:
    numbers = _measured(7, Reduction())
    sets = [
        see(_Pixels(), _images(n, s), chunk_size=7, device=CPU, reduction=Reduction()) for s, n in ((0, 41), (2, 31))
    ]
    metric = ManifoldPrecisionRecall(features=3, neighbours=2)
    metric.update(sets[0].spread(23).features, real=True)
    metric.update(sets[1].spread(23).features, real=False)
    assert (numbers["pixels_precision"], numbers["pixels_recall"]) == metric.compute()


def test_sets_that_are_too_small_have_no_number_and_the_text_says_so() -> None:
    few, many = (
        see(_Pixels(), _images(count, 0), chunk_size=7, device=CPU, reduction=Reduction()) for count in (1, 41)
    )
    measured = measure_generation(_Pixels(), many, many, few, neighbours=2, seed=0, how=HOW)
    numbers, about = measured.numbers["generation"], measured.about
    for name in ("fid", "kid", "precision", "recall"):
        assert numbers[f"pixels_{name}"] is None
        assert about[f"generation.pixels_{name}"].startswith("left out")
    assert numbers["pixels_fid_held_out"] == pytest.approx(0.0, abs=1e-6)
    assert precision_recall(many, few, 2) is None


@pytest.mark.parametrize("counts", [(41, 1, 31), (41, 2, 31), (1, 23, 31), (41, 23, 2), (3, 3, 3), (41, 23, 31)])
def test_a_number_is_left_out_where_its_text_says_so(counts: tuple[int, int, int]) -> None:
    """Numbers of training, held-out and generated images; manifolds are of 2 neighbours."""
    sets = [
        see(_Pixels(), _images(count, seed), chunk_size=7, device=CPU, reduction=Reduction())
        for seed, count in enumerate(counts)
    ]
    measured = measure_generation(_Pixels(), *sets, neighbours=2, seed=0, how=HOW)
    measured = measured.joined(measure_rfid(_Pixels(), sets[1], sets[1]))
    numbers, about = measured.numbers["generation"], measured.about
    for name in ("fid", "kid", "score", "precision", "recall"):
        for ending in ("", "_held_out"):
            text = about.get(f"generation.pixels_{name}{ending}", "")
            assert (numbers[f"pixels_{name}{ending}"] is None) == text.startswith("left out"), (name, ending)
    training, held_out, generated = counts
    assert (numbers["pixels_fid"] is None) == (min(training, generated) < 2)
    assert (numbers["pixels_fid_held_out"] is None) == (min(training, held_out) < 2)
    assert (numbers["pixels_recall"] is None) == (numbers["pixels_recall_held_out"] is None) == (min(counts) < 3)
    (rfid,) = measured.numbers["reconstruction"].values()
    assert (rfid is None) == (held_out < 2) == about["reconstruction.pixels_rfid"].startswith("left out")
    assert about["generation"] == f"of {generated} samples (in one way)"


def test_images_that_are_too_small_for_a_classifier_have_no_extractor() -> None:
    config = RunConfig.model_validate({"autoencoder": {"channels": 1, "levels": {"top": {"ratio": 4}}}})
    images = torch.zeros(5, 1, 7, 9, dtype=torch.uint8)
    extractor, reason = build_extractor(
        config,
        RunFolder("nowhere"),
        {"images": images, "labels": torch.zeros(5, dtype=torch.int64)},
        num_classes=1,
        device=CPU,
        reduction=Reduction(),
    )
    assert extractor is None
    assert "smaller than 8 pixels" in reason


def _measured_in_group(chunk_size: int) -> dict[str, object]:
    return _measured(chunk_size, current_reduction())


@pytest.mark.processes
@pytest.mark.parametrize("chunk_size", [7, 40])
def test_processes_measure_what_one_measures(chunk_size: int) -> None:
    """At a chunk size of 40 the second process has one training image, and no other ones."""
    expected = _measured(100, Reduction())
    for found in run_in_processes(_measured_in_group, 2, chunk_size):
        assert found.keys() == expected.keys()
        assert found.pop("extractor") == "three pixels, NOT Inception"
        numbers = {name: value for name, value in expected.items() if name != "extractor"}
        assert found == pytest.approx(numbers, rel=1e-9)
