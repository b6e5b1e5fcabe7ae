"""Vectors to codes and back: each quantizer in one file, all behind the contract of `hvq.quantizers.base`."""

from hvq.quantizers.base import CodebookStatistics, Quantizer, QuantizerResult
from hvq.quantizers.codebook_step import CodebookStep
from hvq.quantizers.kmeans import KMeansResult, kmeans
from hvq.quantizers.search import nearest_code
from hvq.quantizers.vector import VectorQuantizer

__all__ = [
    "CodebookStatistics",
    "CodebookStep",
    "KMeansResult",
    "Quantizer",
    "QuantizerResult",
    "VectorQuantizer",
    "kmeans",
    "nearest_code",
]
