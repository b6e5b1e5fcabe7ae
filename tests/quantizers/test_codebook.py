from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.quantizers import Codebook, CodebookStatistics
from hvq.quantizers.codebook import Learning, Metric

learns = pytest.mark.parametrize("learning", ["moving_average", "gradient"])
measures = pytest.mark.parametrize("metric", ["euclidean", "cosine"])


def codebook_of(codebook_size: int = 17, dimension: int = 5, **arguments: Any) -> Codebook:
    return Codebook(codebook_size=codebook_size, dimension=dimension, **arguments)


def statistics_of(codebook: Codebook, latents: Tensor, weights: Tensor | None = None) -> CodebookStatistics:
    codes = codebook.nearest(latents)
    errors = (latents - codebook.lookup(codes)).square().sum(dim=1)
    return codebook.statistics(latents, codes, errors, weights)


def learn(codebook: Codebook, latents: Tensor) -> Tensor:
    return codebook.apply_statistics(statistics_of(codebook, latents))


def settled(codebook: Codebook) -> Codebook:
    """Past the early steps, in which averages move faster."""
    codebook.steps.fill_(100_000)
    return codebook


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"learning": "hebbian"}, "hebbian"),
        ({"metric": "manhattan"}, "manhattan"),
        ({"decay": 1.0}, "1.0"),
        ({"decay": -0.1}, "-0.1"),
        ({"revival_threshold": 1.0}, "1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        codebook_of(**arguments)


# --- search ---


@learns
def test_cosine_takes_the_vector_at_the_smallest_angle_whatever_the_lengths(learning: Learning) -> None:
    codebook = codebook_of(metric="cosine", learning=learning).double()
    latents = torch.randn(101, 5).double() * torch.logspace(-6, 6, 101).unsqueeze(1).double()
    angles = functional.normalize(latents) @ functional.normalize(codebook.vectors.detach()).T
    assert torch.equal(codebook.nearest(latents), angles.argmax(dim=1))
    assert torch.allclose(codebook.lookup(codebook.nearest(latents)).norm(dim=1), torch.ones(101).double())


@learns
def test_cosine_vectors_stay_on_the_sphere(learning: Learning) -> None:
    codebook = codebook_of(metric="cosine", learning=learning)
    for _ in range(31):
        learn(codebook, 100 * torch.randn(61, 5) + 30)
        if isinstance(codebook.vectors, torch.nn.Parameter):
            codebook.vectors.data.add_(torch.randn(17, 5))
    assert torch.allclose(codebook.table().norm(dim=1), torch.ones(17), atol=1e-6)


# --- statistics ---


@measures
def test_statistics_are_counts_and_sums_of_what_was_compared(metric: Metric) -> None:
    codebook = codebook_of(7, 3, metric=metric).double()
    latents = torch.randn(55, 3, dtype=torch.float64)
    statistics, codes = statistics_of(codebook, latents), codebook.nearest(latents)
    rows = functional.normalize(latents) if metric == "cosine" else latents
    assert statistics.counts.tolist() == [int((codes == code).sum()) for code in range(7)]
    assert statistics.counts.dtype == torch.int64
    assert torch.allclose(statistics.sums, torch.stack([rows[codes == code].sum(dim=0) for code in range(7)]))
    assert all(bool((rows == candidate).all(dim=1).any()) for candidate in statistics.candidates)


@pytest.mark.parametrize("codebook_size", [7, 512])
def test_candidates_for_revival_are_latents_in_proportion_to_their_squared_error(codebook_size: int) -> None:
    """A third of the latents is met exactly, a third lies at distance 1, and a third at distance √3."""
    codebook = codebook_of(codebook_size, 1).double()
    codebook.vectors.copy_(1000.0 * torch.arange(codebook_size).double().unsqueeze(1))
    errors = torch.tensor([0.0, 1.0, 3.0**0.5]).repeat(67).double()
    candidates = statistics_of(codebook, 1000.0 + errors.unsqueeze(1)).candidates[:, 0] - 1000.0
    number = max(16, codebook_size // 16)
    assert candidates.shape == (number,)
    for distance, share in [(0.0, 0.0), (1.0, 0.25), (3.0**0.5, 0.75)]:
        taken = int((candidates - distance).abs().lt(1e-6).sum())
        assert abs(taken - share * number) <= 2


@pytest.mark.parametrize("first", [3, 7, 16])
def test_the_first_few_candidates_are_spread_over_the_batch_like_all_of_them(first: int) -> None:
    codebook = codebook_of(101, 1).double()
    codebook.vectors.copy_(torch.arange(101).double().unsqueeze(1))
    candidates = statistics_of(codebook, torch.arange(101).double().unsqueeze(1)).candidates.flatten()[:first]
    assert len(candidates.unique()) == first
    ends = torch.cat([torch.tensor([-0.5, 100.5]).double(), candidates]).sort().values
    assert float(ends.diff().max()) < 2.7 * 101 / (first + 1)


def test_masked_latents_are_never_candidates() -> None:
    codebook = codebook_of(7, 3).double()
    latents = torch.randn(55, 3).double()
    weights = torch.arange(55) % 5 == 0
    latents[~weights] += 1e6
    statistics = statistics_of(codebook, latents, weights)
    assert int(statistics.counts.sum()) == 11
    assert float(statistics.candidates.abs().max()) < 1e3


# --- moving averages ---


@pytest.mark.parametrize("decay", [0.99, 0.9, 0.0])
def test_moving_averages_follow_the_formulas(decay: float) -> None:
    """Appendix A.1 of the paper, with its smoothing where counts divide; early steps weigh 9 / (10 + t)."""
    size, dimension, smoothing = 5, 3, 1e-5
    codebook = codebook_of(size, dimension, decay=decay, revival_threshold=0.0).double()
    counts, sums = [1.0] * size, codebook.vectors.tolist()
    generator = torch.Generator().manual_seed(7)
    for t in range(19):
        latents = torch.randn(16 * 5, dimension, generator=generator, dtype=torch.float64)
        codes = codebook.nearest(latents).tolist()
        learn(codebook, latents)
        weight = max(1 - decay, 9 / (10 + t))
        for code in range(size):
            own = [row for row, chosen in zip(latents.tolist(), codes, strict=True) if chosen == code]
            counts[code] = (1 - weight) * counts[code] + weight * len(own)
            for d in range(dimension):
                sums[code][d] = (1 - weight) * sums[code][d] + weight * sum(row[d] for row in own)
        total = sum(counts)
        smoothed = [(count + smoothing) / (total + size * smoothing) * total for count in counts]
        expected = torch.tensor([[s / n for s in row] for row, n in zip(sums, smoothed, strict=True)]).double()
        assert torch.allclose(codebook.moving_counts, torch.tensor(counts).double(), atol=1e-6)
        assert torch.allclose(codebook.vectors, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "latents", "weight"),
    [(0, 32, 0.9), (8, 32, 0.5), (889, 32, 9 / 899), (891, 32, 0.01), (10**6, 32, 0.01), (0, 8, 0.25), (0, 0, 0.0)],
)
def test_the_weight_of_a_step_falls_to_one_minus_decay_and_is_small_for_few_latents(
    step: int, latents: int, weight: float
) -> None:
    codebook = codebook_of(2, 1, revival_threshold=0.0).double()
    codebook.steps.fill_(step)
    codebook.moving_counts.fill_(1000.0)
    counts = torch.tensor([latents, 0])
    codebook.apply_statistics(CodebookStatistics(counts, torch.zeros(2, 1).double(), torch.zeros(1, 1).double()))
    assert float(codebook.moving_counts[1]) == pytest.approx(1000.0 * (1 - weight), rel=1e-9)
    assert int(codebook.steps) == step + 1


def test_smoothed_counts_are_never_stored() -> None:
    codebook = settled(codebook_of(3, 2, revival_threshold=0.0)).double()
    counts, sums = codebook.moving_counts.clone(), codebook.moving_sums.clone()
    one = CodebookStatistics(torch.tensor([1, 0, 0]), torch.zeros(3, 2).double(), torch.zeros(1, 2).double())
    for _ in range(101):
        codebook.apply_statistics(one)
    assert torch.allclose(codebook.moving_counts[1:], counts[1:] * 0.99**101, rtol=1e-12)
    assert torch.allclose(codebook.moving_sums, sums * 0.99**101, rtol=1e-12)


def test_codes_never_used_again_stay_finite_without_revival() -> None:
    codebook = codebook_of(5, 3, decay=0.5, revival_threshold=0.0)
    for _ in range(211):
        learn(codebook, torch.full((7, 3), 2.0))
    assert bool(codebook.vectors.isfinite().all())
    latents = torch.full((7, 3), 2.0)
    assert float((codebook.lookup(codebook.nearest(latents)) - latents).square().mean()) < 1e-9


# --- revival ---


def worn(learning: Learning, dead: list[int], counts: float = 100.0) -> Codebook:
    """Eleven codes, some of them hardly used."""
    codebook = settled(codebook_of(11, 3, learning=learning)).double()
    codebook.moving_counts.fill_(counts)
    codebook.moving_counts[dead] = counts * 1e-3
    if learning == "moving_average":
        codebook.moving_sums.copy_(codebook.vectors * codebook.moving_counts.unsqueeze(1))
    return codebook


def steady(codebook: Codebook, candidates: Tensor) -> CodebookStatistics:
    """Statistics that leave the averages where they are."""
    counts = codebook.moving_counts.round().long()
    return CodebookStatistics(counts, codebook.vectors.detach() * counts.unsqueeze(1), candidates)


@learns
def test_dead_codes_take_candidates_and_keep_them(learning: Learning) -> None:
    codebook = worn(learning, dead=[2, 7])
    before = codebook.vectors.detach().clone()
    candidates = 50 + torch.randn(5, 3, dtype=torch.float64)
    revived = codebook.apply_statistics(steady(codebook, candidates))
    assert revived.nonzero().flatten().tolist() == [2, 7]
    assert torch.equal(codebook.vectors[[2, 7]], candidates[:2])
    assert torch.allclose(codebook.vectors[~revived], before[~revived], rtol=1e-4)
    again = codebook.apply_statistics(steady(codebook, torch.zeros_like(candidates)))
    assert not bool(again.any()), "a revived code is not dead at the next step"
    assert torch.allclose(codebook.vectors[[2, 7]], candidates[:2], rtol=1e-4), "it survives the next update"


def test_a_revived_code_that_stays_unused_is_revived_again() -> None:
    codebook = worn("moving_average", dead=[2])
    still = steady(codebook, torch.zeros(0, 3))
    still.counts[2], still.sums[2] = 0, 0.0
    revivals = []
    for _ in range(301):
        candidates = torch.randn(3, 3, dtype=torch.float64)
        revivals.append(bool(codebook.apply_statistics(CodebookStatistics(still.counts, still.sums, candidates))[2]))
    assert 1 < sum(revivals) < 10


def test_no_more_codes_are_revived_than_candidates_the_least_used_first() -> None:
    codebook = worn("moving_average", dead=[1, 4, 9])
    codebook.moving_counts[[1, 4, 9]] = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64)
    nothing = torch.zeros(11, dtype=torch.int64), torch.zeros(11, 3, dtype=torch.float64)
    revived = codebook.apply_statistics(CodebookStatistics(*nothing, torch.ones(2, 3, dtype=torch.float64)))
    assert revived.nonzero().flatten().tolist() == [4, 9]


@given(factor=st.sampled_from([2, 3, 7, 1000]), seed=st.integers(0, 99))
def test_the_threshold_means_the_same_for_any_number_of_latents(factor: int, seed: int) -> None:
    """A batch or a number of processes that is larger multiplies every count, and changes nothing."""
    torch.manual_seed(seed)
    counts = torch.randint(0, 30, (11,)) * torch.randint(0, 2, (11,))
    counts[0] += 1
    sums, candidates = torch.randn(11, 3).double() * counts.unsqueeze(1), torch.randn(11, 3).double()
    one, many = settled(codebook_of(11, 3)).double(), codebook_of(11, 3).double()
    many.load_state_dict(one.state_dict())
    many.moving_counts.mul_(factor)
    many.moving_sums.mul_(factor)
    for _ in range(3):
        revived = one.apply_statistics(CodebookStatistics(counts, sums, candidates))
        of_many = many.apply_statistics(CodebookStatistics(counts * factor, sums * factor, candidates))
        assert torch.equal(of_many, revived)
    assert torch.allclose(many.vectors, one.vectors, rtol=1e-3, atol=1e-3)


def test_the_threshold_is_a_share_of_fair_usage() -> None:
    for share, expected in [(0.099, False), (0.101, True)]:
        codebook = settled(codebook_of(10, 3, revival_threshold=share)).double()
        usage = torch.full((10,), 110.0).double()
        usage[3] = 10.0
        codebook.moving_counts.copy_(usage)
        nothing = torch.zeros(10, 3).double(), torch.zeros(1, 3).double()
        assert bool(codebook.apply_statistics(CodebookStatistics(usage.long(), *nothing))[3]) is expected


def test_revival_can_be_turned_off() -> None:
    codebook = worn("moving_average", dead=[2, 7])
    codebook.revival_threshold = 0.0
    assert not bool(codebook.apply_statistics(steady(codebook, torch.zeros(5, 3).double())).any())


# --- the first codebook ---


def heaps(number: int, dimension: int, each: int = 32) -> Tensor:
    """Latents `[n, D]` in tight heaps far from each other."""
    centers = 10 * torch.randn(number, dimension)
    return (centers.repeat_interleave(each, dim=0) + 1e-3 * torch.randn(number * each, dimension)).double()


@measures
@pytest.mark.parametrize("number", [1, 7, 13])
def test_first_codebook_stays_put_in_a_step_on_the_same_latents(number: int, metric: Metric) -> None:
    latents = heaps(number, 5)
    codebook = codebook_of(13, metric=metric).double()
    codebook.initialize(latents, 1, Reduction())
    before = codebook.vectors.clone()
    assert torch.allclose(codebook.moving_sums, before * codebook.moving_counts.unsqueeze(1), atol=1e-12)
    used = codebook.nearest(latents).unique()
    learn(codebook, latents)
    moved = (codebook.vectors - before).norm(dim=1) / before.norm(dim=1)
    assert float(moved[used].max()) < 1e-3


def test_first_averages_are_those_of_one_step() -> None:
    codebook = codebook_of(7).double()
    codebook.initialize(heaps(7, 5, each=30), 3, Reduction())
    assert float(codebook.moving_counts.sum()) == pytest.approx(70.0)


@learns
def test_with_fewer_distinct_latents_than_codes_the_rest_is_dead_until_revived(learning: Learning) -> None:
    latents = torch.randn(3, 5).repeat(11, 1)
    codebook = codebook_of(17, learning=learning)
    codebook.initialize(latents, 1, Reduction())
    assert codebook.alive.tolist() == [True] * 3 + [False] * 14
    assert bool(codebook.vectors.isfinite().all())
    near_zero = 1e-3 * torch.randn(101, 5)
    assert int(codebook.nearest(near_zero).max()) < 3, "dead codes are zero, and still not chosen"
    assert bool(codebook.mean_vector().isfinite().all())
    learn(codebook, near_zero)
    assert bool(codebook.alive.all())
    assert len(codebook.nearest(near_zero).unique()) > 3


def test_that_it_was_initialized_is_kept_with_the_weights() -> None:
    codebook = codebook_of()
    assert not bool(codebook.initialized)
    codebook.initialize(torch.randn(101, 5), 1, Reduction())
    loaded = codebook_of()
    loaded.load_state_dict(codebook.state_dict())
    assert bool(loaded.initialized)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in codebook.state_dict().items())


def test_the_mean_vector_is_weighted_by_usage() -> None:
    codebook = codebook_of(3, 2)
    codebook.vectors.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [100.0, 100.0]]))
    codebook.moving_counts.copy_(torch.tensor([3.0, 1.0, 5.0]))
    codebook.alive.copy_(torch.tensor([True, True, False]))
    assert codebook.mean_vector().tolist() == [0.75, 0.25]


@learns
@measures
def test_a_codebook_from_elsewhere_goes_on_from_there(learning: Learning, metric: Metric) -> None:
    vectors, counts = functional.normalize(torch.randn(17, 5), dim=1), 1 + torch.rand(17)
    codebook = codebook_of(learning=learning, metric=metric)
    codebook.alive[3] = False
    codebook.adopt(vectors, counts)
    assert torch.equal(codebook.moving_counts, counts)
    assert bool(codebook.initialized)
    assert torch.equal(codebook.nearest(vectors), torch.arange(17))
    learn(codebook, vectors)
    assert torch.allclose(codebook.vectors, vectors, atol=1e-4), "latents where the vectors are move them nowhere"


def test_of_a_codebook_that_counted_nothing_all_codes_are_as_likely() -> None:
    codebook, vectors = codebook_of(), torch.randn(17, 5)
    codebook.adopt(vectors, torch.zeros(17), initialized=False)
    assert torch.allclose(codebook.mean_vector(), vectors.mean(dim=0), atol=1e-6)
    assert not bool(codebook.initialized)
