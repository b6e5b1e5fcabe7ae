"""What all configuration models have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Share = Annotated[float, Field(ge=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
# Names become names of folders, modules, numbers and override paths, so they hold neither dots nor slashes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
# One length for each axis: (T) of signals, (H, W) of images, (X, Y, Z) of volumes; of grids the same.
Size = Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=3)]


class FrozenModel(BaseModel):
    """Base of every configuration: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
