"""Configuration to a quantizer."""

from __future__ import annotations

from hvq.config_quantizers import (
    GaussianBottleneckConfig,
    InnerQuantizerConfig,
    QuantizerConfig,
    ResidualQuantizerConfig,
)
from hvq.quantizers.base import Quantizer
from hvq.quantizers.finite_scalar import FiniteScalarQuantizer
from hvq.quantizers.gaussian import GaussianBottleneck
from hvq.quantizers.gumbel import GumbelQuantizer
from hvq.quantizers.lookup_free import LookupFreeQuantizer
from hvq.quantizers.residual import ResidualQuantizer
from hvq.quantizers.sim import SimQuantizer
from hvq.quantizers.vector import VectorQuantizer

_SINGLE_KINDS: dict[str, type[Quantizer]] = {
    "vector": VectorQuantizer,
    "finite_scalar": FiniteScalarQuantizer,
    "lookup_free": LookupFreeQuantizer,
    "sim": SimQuantizer,
    "gumbel": GumbelQuantizer,
}


def build_quantizer(config: QuantizerConfig, *, codebook_size: int, code_dimension: int) -> Quantizer:
    """The quantizer of one level.

    Args:
        config: of any kind.
        codebook_size: K, the number of values of a code; a Gaussian bottleneck does without.
        code_dimension: D.

    Raises:
        ConfigurationError: where the configuration, K and D do not go together.

    >>> from hvq.config_quantizers import SimQuantizerConfig
    >>> build_quantizer(SimQuantizerConfig(), codebook_size=5, code_dimension=3).codebook_size
    5
    """
    if isinstance(config, ResidualQuantizerConfig):
        return _build_residual(config, codebook_size, code_dimension)
    if isinstance(config, GaussianBottleneckConfig):
        return GaussianBottleneck(code_dimension=code_dimension)
    return _build_single(config, codebook_size, code_dimension)


def _build_single(config: InnerQuantizerConfig | QuantizerConfig, codebook_size: int, code_dimension: int) -> Quantizer:
    arguments = config.model_dump(exclude={"kind"})
    return _SINGLE_KINDS[config.kind](codebook_size=codebook_size, code_dimension=code_dimension, **arguments)


def _build_residual(config: ResidualQuantizerConfig, codebook_size: int, code_dimension: int) -> ResidualQuantizer:
    number = 1 if config.shared else config.num_quantizers
    return ResidualQuantizer(
        quantizers=[_build_single(config.inner, codebook_size, code_dimension) for _ in range(number)],
        codes_per_position=config.num_quantizers,
        dropout=config.dropout,
    )
