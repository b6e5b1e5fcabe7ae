"""What all configuration models have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
# Names become names of folders, modules, numbers and override paths, so they hold neither dots nor slashes.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class FrozenModel(BaseModel):
    """Base of every configuration: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
