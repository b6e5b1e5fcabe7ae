"""K-means, for the first codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hvq.quantizers.search import nearest_code
from hvq.randomness import permutation


@dataclass(frozen=True)
class KMeansResult:
    """Clusters of some vectors.

    Attributes:
        centroids: `[K, D]`, finite also where a cluster is empty.
        counts: int64 `[K]`, vectors nearest to each centroid.
        alive: bool `[K]`, False for the centroids beyond the number of distinct vectors.
    """

    centroids: Tensor
    counts: Tensor
    alive: Tensor


@torch.no_grad()
def kmeans(vectors: Tensor, num_clusters: int, *, iterations: int = 10, seed: int = 0) -> KMeansResult:
    """Lloyd's algorithm from distinct vectors drawn at random; a cluster that empties restarts at the worst-fitted one.

    Args:
        vectors: `[n, D]`, n >= 1, float32 or float64.
        num_clusters: K.
        iterations: rounds of assignment and averaging.
        seed: of the first centroids.

    >>> kmeans(torch.tensor([[0.0], [0.2], [5.0], [5.2]]), 2).centroids.flatten().sort().values
    tensor([0.1000, 5.1000])
    """
    distinct = torch.unique(vectors, dim=0)
    if len(distinct) <= num_clusters:
        return _one_cluster_each(vectors, distinct, num_clusters)
    chosen = torch.from_numpy(permutation(len(distinct), "kmeans", seed)[:num_clusters])
    centroids = distinct[chosen.to(distinct.device)]
    for _ in range(iterations):
        centroids = _refit(vectors, centroids)
    codes = nearest_code(vectors, centroids)
    counts = torch.bincount(codes, minlength=num_clusters)
    return KMeansResult(centroids, counts, torch.ones_like(counts, dtype=torch.bool))


def _one_cluster_each(vectors: Tensor, distinct: Tensor, num_clusters: int) -> KMeansResult:
    """With no more distinct vectors than clusters, each is its own centroid and the other clusters are not alive."""
    centroids = distinct.new_zeros(num_clusters, distinct.shape[1])
    centroids[: len(distinct)] = distinct
    alive = torch.arange(num_clusters, device=vectors.device) < len(distinct)
    counts = torch.bincount(nearest_code(vectors, centroids, alive), minlength=num_clusters)
    return KMeansResult(centroids, counts, alive)


def _refit(vectors: Tensor, centroids: Tensor) -> Tensor:
    codes = nearest_code(vectors, centroids)
    counts = torch.bincount(codes, minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add_(0, codes, vectors)
    means = sums / counts.clamp(min=1).unsqueeze(1)
    empty = counts == 0
    errors = (vectors - centroids[codes]).square().sum(dim=1)
    worst = errors.topk(int(empty.sum())).indices
    means[empty] = vectors[worst]
    return means
