from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvq.quantizers import kmeans, nearest_code


def inertia(vectors: Tensor, centroids: Tensor) -> float:
    """Mean squared distance to the nearest centroid."""
    return float((vectors - centroids[nearest_code(vectors, centroids)]).square().sum(dim=1).mean())


def clusters(number: int, each: int, dimension: int, spread: float = 0.01) -> tuple[Tensor, Tensor]:
    """Centres far apart, on one axis each or on multiples of it, and vectors around them."""
    centers = torch.zeros(number, dimension, dtype=torch.float64)
    centers[torch.arange(number), torch.arange(number) % dimension] = 100.0 * (1 + torch.arange(number).double())
    vectors = centers.repeat_interleave(each, dim=0)
    return centers, vectors + spread * torch.randn(vectors.shape, dtype=torch.float64)


def test_finds_separated_clusters_with_their_counts() -> None:
    torch.manual_seed(3)
    centers, vectors = clusters(3, 29, 5)
    result = kmeans(vectors, 3)
    order = result.centroids.norm(dim=1).argsort()
    assert torch.allclose(result.centroids[order], vectors.view(3, 29, 5).mean(dim=1), atol=1e-9)
    assert torch.allclose(result.centroids[order], centers, atol=0.05)
    assert result.counts.tolist() == [29, 29, 29]
    assert bool(result.alive.all())


def test_rounds_reduce_the_error() -> None:
    torch.manual_seed(5)
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
