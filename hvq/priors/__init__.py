"""Autoregressive models of a level's codes, given coarser levels and the class, and sampling from them."""

from hvq.priors.base import Prior, PriorCache, PriorLevel
from hvq.priors.build import build_prior
from hvq.priors.condition import Condition, ConditionEncoder
from hvq.priors.description import PriorDescription
from hvq.priors.drawing import SamplingOptions
from hvq.priors.pixelcnn import PixelCNNPrior
from hvq.priors.pixelsnail import PixelSNAILPrior
from hvq.priors.sampling import sample_hierarchy, sample_level
from hvq.priors.transformer import TransformerPrior

__all__ = [
    "Condition",
    "ConditionEncoder",
    "PixelCNNPrior",
    "PixelSNAILPrior",
    "Prior",
    "PriorCache",
    "PriorDescription",
    "PriorLevel",
    "SamplingOptions",
    "TransformerPrior",
    "build_prior",
    "sample_hierarchy",
    "sample_level",
]
