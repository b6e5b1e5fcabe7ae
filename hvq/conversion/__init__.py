"""Checkpoints of other projects to models of this one, with equal outputs."""

from hvq.conversion.codebooks import ConvertedQuantizer, convert_codebooks
from hvq.conversion.kinds import KINDS, detect_kind
from hvq.conversion.rosinality import convert_rosinality
from hvq.conversion.rosinality_prior import ConvertedPrior, convert_rosinality_prior
from hvq.conversion.run import convert_checkpoints
from hvq.conversion.tensors import ForeignCheckpoint, unwrap
from hvq.conversion.vvvm23 import convert_vvvm23

__all__ = [
    "KINDS",
    "ConvertedPrior",
    "ConvertedQuantizer",
    "ForeignCheckpoint",
    "convert_checkpoints",
    "convert_codebooks",
    "convert_rosinality",
    "convert_rosinality_prior",
    "convert_vvvm23",
    "detect_kind",
    "unwrap",
]
