"""The terms of the reconstruction loss as configuration: each with a name of the user's, a kind, and a weight."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat

from hvq.config_base import FrozenModel


class WeightedLossConfig(FrozenModel):
    """What all kinds of terms share."""

    weight: NonNegativeFloat = Field(1.0, description="of this term in the sum")


class SquaredErrorConfig(WeightedLossConfig):
    """Mean squared error of pixels in [-1, 1]."""

    kind: Literal["mse"] = "mse"


class AbsoluteErrorConfig(WeightedLossConfig):
    """Mean absolute error of pixels in [-1, 1]."""

    kind: Literal["l1"] = "l1"


ReconstructionLossConfig = Annotated[
    SquaredErrorConfig | AbsoluteErrorConfig,
    Field(discriminator="kind", description="one term of the reconstruction loss"),
]


def single_loss(terms: Any) -> Any:
    """One word, the kind, stands for that loss of pixels alone.

    >>> single_loss("l1")
    {'pixels': {'kind': 'l1'}}
    """
    return {"pixels": {"kind": terms}} if isinstance(terms, str) else terms


def squared_error_alone() -> dict[str, ReconstructionLossConfig]:
    """The terms by default."""
    return {"pixels": SquaredErrorConfig()}
