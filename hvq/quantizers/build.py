"""Configuration to a quantizer, and back."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from hvq.config_quantizers import (
    GaussianBottleneckConfig,
    InnerQuantizerConfig,
    QuantizerConfig,
    ResidualQuantizerConfig,
)
from hvq.errors import ConfigurationError
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
_CONFIG: TypeAdapter[QuantizerConfig] = TypeAdapter(QuantizerConfig)


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


def describe_quantizer(quantizer: Quantizer) -> QuantizerConfig:
    """The configuration that makes such a quantizer, from the arguments of its constructor.

    Raises:
        ConfigurationError: where it is of a class of a user's own, or a row of residual quantizers that differ.

    >>> describe_quantizer(VectorQuantizer(codebook_size=5, code_dimension=3, metric="cosine")).metric
    'cosine'
    """
    if isinstance(quantizer, ResidualQuantizer):
        return _describe_residual(quantizer)
    if isinstance(quantizer, GaussianBottleneck):
        return GaussianBottleneckConfig()
    kind = next((kind for kind, single in _SINGLE_KINDS.items() if type(quantizer) is single), None)
    options = {n: v for n, v in quantizer.arguments.items() if n not in ("codebook_size", "code_dimension")}
    try:
        return _CONFIG.validate_python({"kind": kind, **options})
    except ValidationError:
        raise ConfigurationError(
            f"no configuration makes a {type(quantizer).__name__}, so that it cannot be saved as a folder; the kinds "
            f"are {', '.join(_SINGLE_KINDS)}, residual and gaussian: save its state_dict with safetensors"
        ) from None


def _describe_residual(quantizer: ResidualQuantizer) -> ResidualQuantizerConfig:
    inner = [describe_quantizer(each) for each in quantizer.quantizers if isinstance(each, Quantizer)]
    if any(each != inner[0] for each in inner):
        raise ConfigurationError(
            "quantizers of a row that differ in more than their weights are not made by a configuration, so that the "
            "row cannot be saved as a folder; save each of them, or the state_dict with safetensors"
        )
    fields = {
        "num_quantizers": quantizer.codes_per_position,
        "shared": quantizer.shared,
        "dropout": quantizer.dropout,
        "inner": inner[0],
    }
    return ResidualQuantizerConfig.model_validate(fields)
