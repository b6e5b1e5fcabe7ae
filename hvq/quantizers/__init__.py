"""Vectors to codes and back: each quantizer in one file, all behind the contract of `hvq.quantizers.base`."""

from hvq.quantizers.base import LEARNING_STATE, Quantizer, QuantizerResult
from hvq.quantizers.codebook import Codebook, CodebookStatistics
from hvq.quantizers.codebook_step import CodebookStep
from hvq.quantizers.description import QuantizerDescription
from hvq.quantizers.finite_scalar import FiniteScalarQuantizer
from hvq.quantizers.gaussian import GaussianBottleneck, elbo_weight
from hvq.quantizers.gumbel import GumbelQuantizer
from hvq.quantizers.kmeans import KMeansResult, kmeans
from hvq.quantizers.lookup_free import LookupFreeQuantizer
from hvq.quantizers.residual import ResidualQuantizer
from hvq.quantizers.search import nearest_code
from hvq.quantizers.sim import SimQuantizer
from hvq.quantizers.vector import VectorQuantizer

__all__ = [
    "LEARNING_STATE",
    "Codebook",
    "CodebookStatistics",
    "CodebookStep",
    "FiniteScalarQuantizer",
    "GaussianBottleneck",
    "GumbelQuantizer",
    "KMeansResult",
    "LookupFreeQuantizer",
    "Quantizer",
    "QuantizerDescription",
    "QuantizerResult",
    "ResidualQuantizer",
    "SimQuantizer",
    "VectorQuantizer",
    "elbo_weight",
    "kmeans",
    "nearest_code",
]
