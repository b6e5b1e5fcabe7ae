from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvq.quantizers import kmeans, nearest_code


def inertia(vectors: Tensor, centroids: Tensor) -> float:
    """Mean squared distance to the nearest centroid."""
    return float((vectors - centroids[nearest_code(vectors, centroids)]).square().sum(dim=1).mean())


def test_finds_two_separated_clusters_with_their_counts() -> None:
    left, right = torch.randn(29, 5, dtype=torch.float64), torch.randn(31, 5, dtype=torch.float64) + 100
    result = kmeans(torch.cat([left, right]), 2)
    order = result.counts.argsort()
    assert torch.allclose(result.centroids[order], torch.stack([left.mean(dim=0), right.mean(dim=0)]), atol=1e-9)
    assert sorted(result.counts.tolist()) == [29, 31]
    assert bool(result.alive.all())


def test_centroids_settle_at_the_means_of_their_vectors() -> None:
    vectors = torch.randn(211, 2, dtype=torch.float64)
    result = kmeans(vectors, 5, iterations=100)
    codes = nearest_code(vectors, result.centroids)
    means = torch.stack([vectors[codes == code].mean(dim=0) for code in range(5)])
    assert torch.allclose(result.centroids, means, atol=1e-12)
    assert result.counts.tolist() == torch.bincount(codes).tolist()


def test_rounds_reduce_the_error() -> None:
    vectors = torch.randn(499, 3)
    errors = [inertia(vectors, kmeans(vectors, 17, iterations=rounds).centroids) for rounds in (0, 1, 3, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_is_the_same_every_time_and_depends_on_the_seed() -> None:
    vectors = torch.randn(101, 3)
    first, again, other = kmeans(vectors, 7), kmeans(vectors, 7), kmeans(vectors, 7, seed=1)
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)


@given(
    number=st.integers(1, 23), distinct=st.integers(1, 23), clusters_wanted=st.integers(1, 13), seed=st.integers(0, 999)
)
def test_few_vectors_and_duplicates_stay_finite(number: int, distinct: int, clusters_wanted: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(distinct, 2, generator=generator)[torch.randint(distinct, (number,), generator=generator)]
    found = len(vectors.unique(dim=0))
    result = kmeans(vectors, clusters_wanted)
    assert bool(result.centroids.isfinite().all())
    assert result.centroids.shape == (clusters_wanted, 2)
    assert int(result.counts.sum()) == number
    assert int(result.alive.sum()) == min(found, clusters_wanted)
    assert int(result.counts[~result.alive].sum()) == 0
    if found <= clusters_wanted:
        assert inertia(vectors, result.centroids[result.alive]) == 0.0


def test_a_cluster_that_empties_restarts_at_the_worst_fitted_vector() -> None:
    """Two of three first centroids lie in one of three tight heaps; the third heap is found all the same."""
    heaps = torch.tensor([[0.0], [1.0], [50.0]])
    vectors = (heaps.repeat_interleave(31, dim=0) + 1e-3 * torch.randn(93, 1)).double()
    results = [kmeans(vectors, 3, seed=seed, iterations=30) for seed in range(5)]
    assert all(bool((result.counts > 0).all()) for result in results)
