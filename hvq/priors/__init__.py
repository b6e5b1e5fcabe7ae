"""Autoregressive models of a level's codes, given coarser levels and the class, and sampling from them."""

from hvq.priors.base import Prior
from hvq.priors.build import build_prior
from hvq.priors.condition import Condition, ConditionEncoder
from hvq.priors.sampling import SamplingOptions, sample_hierarchy, sample_level
from hvq.priors.transformer import TransformerCache, TransformerPrior

__all__ = [
    "Condition",
    "ConditionEncoder",
    "Prior",
    "SamplingOptions",
    "TransformerCache",
    "TransformerPrior",
    "build_prior",
    "sample_hierarchy",
    "sample_level",
]
