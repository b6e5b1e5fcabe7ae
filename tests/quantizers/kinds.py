"""Small instances of every kind of quantizer and its variants, which the contract is tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvq.quantizers import Quantizer, VectorQuantizer
from hvq.quantizers.finite_scalar import FiniteScalarQuantizer
from hvq.quantizers.gaussian import GaussianBottleneck
from hvq.quantizers.gumbel import GumbelQuantizer
from hvq.quantizers.lookup_free import LookupFreeQuantizer
from hvq.quantizers.residual import ResidualQuantizer
from hvq.quantizers.sim import SimQuantizer

# D of all instances.
DIMENSION = 6


def vector(**arguments: Any) -> Quantizer:
    """Of 17 codes."""
    return VectorQuantizer(codebook_size=17, code_dimension=DIMENSION, **arguments)


def rows(make: Callable[[], Quantizer], number: int, **arguments: Any) -> Quantizer:
    """A row of residual quantizers, each made anew."""
    return ResidualQuantizer(quantizers=[make() for _ in range(number)], **arguments)


KINDS: dict[str, Callable[[], Quantizer]] = {
    "vector": vector,
    "vector gradient": lambda: vector(learning="gradient"),
    "vector rotation": lambda: vector(estimator="rotation"),
    "vector cosine": lambda: vector(metric="cosine"),
    "vector cosine gradient rotation": lambda: vector(metric="cosine", learning="gradient", estimator="rotation"),
    "vector diveq": lambda: vector(learning="gradient", estimator="diveq"),
    "vector heads": lambda: vector(heads=3),
    "vector projection": lambda: vector(projection_dimension=4, heads=2),
    "residual": lambda: rows(vector, 3),
    "residual dropout": lambda: rows(vector, 3, dropout=0.5),
    "residual shared": lambda: rows(vector, 1, codes_per_position=3),
    "residual diveq": lambda: rows(lambda: vector(learning="gradient", estimator="diveq"), 2),
    "residual sim": lambda: rows(KINDS["sim"], 2),
    "residual finite_scalar": lambda: rows(KINDS["finite_scalar"], 2),
    "residual lookup_free": lambda: rows(KINDS["lookup_free"], 2),
    "finite_scalar": lambda: FiniteScalarQuantizer(
        codebook_size=7 * 5**5, code_dimension=DIMENSION, levels=(7, 5, 5, 5, 5, 5)
    ),
    "finite_scalar projection": lambda: FiniteScalarQuantizer(codebook_size=40, code_dimension=DIMENSION),
    "lookup_free": lambda: LookupFreeQuantizer(codebook_size=64, code_dimension=DIMENSION),
    "lookup_free groups": lambda: LookupFreeQuantizer(codebook_size=8, code_dimension=DIMENSION, groups=2),
    "lookup_free spherical": lambda: LookupFreeQuantizer(codebook_size=64, code_dimension=DIMENSION, spherical=True),
    "lookup_free projection": lambda: LookupFreeQuantizer(codebook_size=16, code_dimension=DIMENSION),
    "sim": lambda: SimQuantizer(codebook_size=17, code_dimension=DIMENSION),
    "sim rotation": lambda: SimQuantizer(codebook_size=17, code_dimension=DIMENSION, estimator="rotation"),
    "gumbel": lambda: GumbelQuantizer(codebook_size=17, code_dimension=DIMENSION),
    "gumbel hard": lambda: GumbelQuantizer(codebook_size=17, code_dimension=DIMENSION, hard=True),
    "gaussian": lambda: GaussianBottleneck(code_dimension=DIMENSION),
}
# Kinds that have no codes, but means in their place.
CONTINUOUS = {"gaussian"}
# Kinds that draw random numbers in training.
RANDOM = {"vector diveq", "residual dropout", "residual diveq", "gumbel", "gumbel hard", "gaussian"}
# Kinds whose losses are not means over positions, so that those of two halves do not average to those of the whole.
NOT_MEANS = {name for name in KINDS if "lookup_free" in name}
# Kinds in whose gradient the latents' own is that of the vectors, unchanged.
UNCHANGED = {
    "vector",
    "vector gradient",
    "vector cosine",
    "vector heads",
    "residual",
    "residual shared",
    "residual sim",
    "residual lookup_free",
    "lookup_free",
    "lookup_free groups",
    "sim",
}
EXACT = [name for name in KINDS if name not in RANDOM]
