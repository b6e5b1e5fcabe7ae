"""What a prior is conditioned on, and how that becomes features on the level's grid.

Letters: B batch, `*grid` the level's spatial axes, E channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvq.errors import ConfigurationError, DataError
from hvq.level_names import in_level_order
from hvq.priors.embedding import CodeEmbedding
from hvq.priors.taps import CodeTaps, offsets_around
from hvq.priors.vector_reader import VectorReader, hidden_rows


@dataclass(frozen=True)
class Condition:
    """All that a prior is told beside the codes that it predicts.

    Attributes:
        codes: integers `[B, *grid of that level]` of every coarser level, by name; `[B, *grid, G]` where G > 1.
        labels: int64 `[B]`, the class; -1, or None for the whole batch, where it is unknown or hidden.
        features: `[B, F, *any grid]`, a dense map, resized to the level's grid.
        vector: `[B, V]`, such as a text embedding or attributes; a row of NaN, or None for the whole batch, where it is
            unknown or hidden.
    """

    codes: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    features: Tensor | None = None
    vector: Tensor | None = None

    @property
    def told(self) -> Tensor | None:
        """bool `[B]`: samples whose class or vector is known; None where none is."""
        known = [] if self.labels is None else [self.labels >= 0]
        if self.vector is not None:
            known.append(~hidden_rows(self.vector))
        return torch.stack(known).any(dim=0) if known else None


_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _ContextBlock(nn.Module):
    """A pre-normalised residual pair of convolutions, in which every position sees its neighbours."""

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[spatial_dims]
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            convolution(channels, channels, 3, padding=1),
            nn.GELU(),
            convolution(channels, channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


class _GatedContextBlock(nn.Module):
    """The same as public PixelSNAILs have it: two activated convolutions, the second with a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.elu(self.first(functional.elu(features)))
        return features + functional.glu(self.second(hidden), dim=1)


class _CodeConvolution(nn.Module):
    """A convolution of 3x3 codes, all of which are known: features `[B, h, w, E]` of int64 `[B, h, w, G]`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.taps = CodeTaps(**arguments, offsets=offsets_around(1))

    def forward(self, codes: Tensor) -> Tensor:
        return self.taps(self.taps.pad(codes), rows=(0, codes.shape[1]), columns=(0, codes.shape[2]))


class ConditionEncoder(nn.Module):
    """A `Condition` to features `[B, E, *grid]`, one for each position of the level.

    Args:
        channels: E.
        coarser: codebook size of every coarser level by name, coarse to fine.
        coarser_codes_per_position: G of those that have more than one.
        num_classes: number of classes; 0 without.
        blocks: residual blocks of convolutions that read each coarser level.
        feature_channels: F of a dense feature map; 0 without.
        vector_size: V of a vector; 0 without.
        spatial_dims: axes of the grid, 1, 2 or 3.
        gated: whether codes enter by a convolution and blocks have gates, as in public PixelSNAILs; for two axes.
    """

    def __init__(
        self,
        *,
        channels: int,
        coarser: Mapping[str, int],
        coarser_codes_per_position: Mapping[str, int] | None = None,
        num_classes: int = 0,
        blocks: int = 2,
        feature_channels: int = 0,
        vector_size: int = 0,
        spatial_dims: int = 2,
        gated: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in _CONVOLUTIONS:
            raise ConfigurationError(f"spatial_dims must be 1, 2 or 3; received {spatial_dims}")
        self.coarser = dict(coarser)
        self.num_classes = num_classes
        self.vector_size = vector_size
        several = dict(coarser_codes_per_position or {})
        embed = _CodeConvolution if gated else CodeEmbedding
        self.embeddings = nn.ModuleDict(
            {
                name: embed(codebook_size=size, channels=channels, codes_per_position=several.get(name, 1))
                for name, size in coarser.items()
            }
        )
        self._without_axis = [name for name in coarser if several.get(name, 1) == 1]
        self.readers = nn.ModuleDict(
            {
                name: nn.Sequential(*(self._block(channels, spatial_dims, gated) for _ in range(blocks)))
                for name in coarser
            }
        )
        # The last row stands for a class that is unknown.
        self.classes = nn.Embedding(num_classes + 1, channels)
        self.dense = _CONVOLUTIONS[spatial_dims](feature_channels, channels, 1) if feature_channels else None
        self.vector = VectorReader(vector_size, channels) if vector_size else None

    @staticmethod
    def _block(channels: int, spatial_dims: int, gated: bool) -> nn.Module:
        return _GatedContextBlock(channels) if gated else _ContextBlock(channels, spatial_dims)

    def forward(self, condition: Condition, batch: int, grid: Sequence[int]) -> Tensor:
        """Features `[B, E, *grid]`.

        Raises:
            DataError: where the condition is not what the prior was built for, or a label is out of range.
        """
        _check_presence(condition.features, self.dense, "a feature map")
        parts = [self.everywhere(condition, batch)[(..., *(None for _ in grid))]]
        for name, codes in in_level_order(condition.codes, tuple(self.coarser), "codes of coarser levels").items():
            each = codes.long().unsqueeze(-1) if name in self._without_axis else codes.long()
            embedded = torch.movedim(self.embeddings[name](each), -1, 1)
            parts.append(functional.interpolate(self.readers[name](embedded), size=tuple(grid), mode="nearest"))
        if self.dense is not None:
            parts.append(functional.interpolate(self.dense(condition.features), size=tuple(grid), mode="nearest"))
        return sum(parts[1:], start=parts[0].expand(-1, -1, *grid))

    def everywhere(self, condition: Condition, batch: int) -> Tensor:
        """The part that is the same at all positions, of class and vector: `[B, E]`.

        Raises:
            DataError: as above.
        """
        of_class: Tensor = self.classes(self._class_rows(condition.labels, batch))
        if self.vector is None:
            if condition.vector is not None:
                raise DataError("the condition has a vector; this prior was built without")
            return of_class
        return of_class + self.vector(condition.vector, batch)

    def _class_rows(self, labels: Tensor | None, batch: int) -> Tensor:
        device = self.classes.weight.device
        if labels is None:
            return torch.full((batch,), self.num_classes, dtype=torch.int64, device=device)
        if not torch.compiler.is_compiling() and labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if low < -1 or high >= self.num_classes:
                known = f"0 .. {self.num_classes - 1}" if self.num_classes else "none, for it was trained without"
                raise DataError(f"labels must be classes of this prior ({known}), or -1; received {low} .. {high}")
        return torch.where(labels < 0, self.num_classes, labels)


def _check_presence(value: Tensor | None, reader: nn.Module | None, what: str) -> None:
    if value is None and reader is not None:
        raise DataError(f"this prior is conditioned on {what}; the condition has none")
    if value is not None and reader is None:
        raise DataError(f"the condition has {what}; this prior was built without")
