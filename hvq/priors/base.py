"""The contract of every prior.

Letters: B batch, `*grid` the level's spatial axes, in raster order T positions, G codes per position, K codebook size,
E channels of a position's features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Required, TypedDict

import torch
from torch import Tensor, nn

from hvq.errors import ConfigurationError, DataError
from hvq.pretrained import KeepsArguments, PretrainedModule
from hvq.priors.condition import Condition, ConditionEncoder
from hvq.priors.description import PriorDescription
from hvq.priors.embedding import CodeEmbedding
from hvq.priors.head import CodeHead
from hvq.priors.step_product import StepProduct
from hvq.priors.taps import CodeTaps, Offset


@dataclass(frozen=True)
class PriorCache:
    """All that sampling carries from code to code.

    Attributes:
        state: of the kind, such as keys and values; what it holds is written in place.
        length: T·G, the codes of a whole grid.
        position: the next code, 0 .. length.
        features: `[B, E]` of the position that is being drawn; None before the first.
        codes: int64 `[B]` each, the codes so far of that position.
        head: of the head.
    """

    state: Any
    length: int
    position: int = 0
    features: Tensor | None = None
    codes: tuple[Tensor, ...] = ()
    head: Sequence[StepProduct] = ()


class PriorLevel(TypedDict, total=False):
    """What every prior is built for, whatever its kind.

    Attributes:
        codebook_size: K of this level.
        coarser: codebook size of every coarser level by name, coarse to fine.
        num_classes: number of classes; 0 without.
        codes_per_position: G, codes of each position, drawn in order.
        coarser_codes_per_position: the same of those coarser levels that have more than one.
        feature_channels: channels of a dense feature map in the condition; 0 without.
        vector_size: length of a vector in the condition; 0 without.
        spatial_dims: axes of the grids of this level and all coarser ones, 1, 2 or 3; 2 by default.
    """

    codebook_size: Required[int]
    coarser: Mapping[str, int] | None
    num_classes: int
    codes_per_position: int
    coarser_codes_per_position: Mapping[str, int] | None
    feature_channels: int
    vector_size: int
    spatial_dims: int


class Prior(PretrainedModule[PriorDescription], KeepsArguments):
    """p(codes | condition) as a product over positions in raster order, and over the codes of each in order.

    A kind turns earlier positions into features of each position, all at once (`features`) or one after the other
    (`make_state`, `step_features`); the head that turns those into logits is the same for all. No state of sampling is
    kept on the module. Steps run in the precision of the weights, whatever the autocast.

    The arguments are those of `PriorLevel`; a kind adds its own.

    `save_pretrained`, `push_to_hub` and `from_pretrained` are those of `hvq.pretrained.PretrainedModule`; the last of
    this class loads any kind, of a kind's own class that kind. What a prior does not know of itself is given once:

    >>> import tempfile
    >>> from hvq.priors import PixelCNNPrior, sample_level
    >>> prior = PixelCNNPrior(codebook_size=7, width=4, layers=1).eval()
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     prior.save_pretrained(f"{scratch}/prior", level="top", grid=(2, 3), image_size=(8, 12), encoder_hash="")
    ...     loaded = Prior.from_pretrained(f"{scratch}/prior")
    >>> codes = torch.randint(0, 7, (2, 2, 3))
    >>> torch.equal(loaded(codes, Condition()), prior(codes, Condition())), loaded.description.grid
    (True, (2, 3))
    """

    kind_of_model = "prior"
    description_type = PriorDescription

    head: CodeHead

    def __init__(
        self,
        *,
        codebook_size: int,
        coarser: Mapping[str, int] | None = None,
        num_classes: int = 0,
        codes_per_position: int = 1,
        coarser_codes_per_position: Mapping[str, int] | None = None,
        feature_channels: int = 0,
        vector_size: int = 0,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        # Axes of the grid.
        self.spatial_dims = spatial_dims
        self.codebook_size = codebook_size
        # Codebook size of every coarser level that it is conditioned on, by name, coarse to fine.
        self.coarser = dict(coarser or {})
        self.codes_per_position = codes_per_position
        self._told: dict[str, Any] = {
            "coarser_codes_per_position": coarser_codes_per_position,
            "num_classes": num_classes,
            "feature_channels": feature_channels,
            "vector_size": vector_size,
        }

    # --- its folder ---
    # Imported where they are used: the kinds, which are made there, are made of this class.

    def architecture(self) -> Mapping[str, Any]:
        """The fields of its description that it knows, but for its own G, which goes by the name of its level.

        The others are `level`, `grid`, `image_size`, `encoder_hash` (`hvq.storage.encoder_hash` of the autoencoder
        whose codes it models), `classes` by name, and what else `PriorDescription` has.

        Raises:
            ConfigurationError: where no configuration makes this prior.
        """
        from hvq.priors.build import describe_prior

        return {
            "model": describe_prior(self),
            "codebook_size": self.codebook_size,
            "coarser": self.coarser,
            "codes_per_position": dict(self._told["coarser_codes_per_position"] or {}),
            "feature_channels": self._told["feature_channels"],
            "vector_size": self._told["vector_size"],
        }

    def usual_fields(self) -> Mapping[str, Any]:
        """Numbers for the names of classes."""
        return {"classes": tuple(map(str, range(self._told["num_classes"])))}

    def completed(self, description: PriorDescription) -> PriorDescription:
        """The description with its own G, by the name of its level.

        Raises:
            ConfigurationError: where there are more or fewer names of classes than classes, or the grid has more or
                fewer axes than the prior.
        """
        if len(description.grid) != self.spatial_dims:
            raise ConfigurationError(
                f"grid must have one length for each of the {self.spatial_dims} axes of the prior; received "
                f"{len(description.grid)}"
            )
        if len(description.classes) != self._told["num_classes"]:
            raise ConfigurationError(
                f"classes must name the {self._told['num_classes']} classes of the prior; received "
                f"{len(description.classes)}"
            )
        own = {description.level: self.codes_per_position} if self.codes_per_position > 1 else {}
        return description.model_copy(update={"codes_per_position": {**description.codes_per_position, **own}})

    @classmethod
    def from_description(cls, description: PriorDescription) -> Prior:
        """A prior of the kind described, with fresh weights."""
        from hvq.priors.build import build_prior

        return build_prior(
            description.model,
            codebook_size=description.codebook_size,
            coarser=description.coarser,
            num_classes=len(description.classes),
            codes_per_position=description.codes_per_position.get(description.level, 1),
            coarser_codes_per_position=description.codes_per_position,
            feature_channels=description.feature_channels,
            vector_size=description.vector_size,
            spatial_dims=len(description.grid),
        )

    def usage(self, name: str) -> str:
        """Python for the model card."""
        return f"""
from hvq.priors import Condition, Prior, sample_level

prior = Prior.from_pretrained("{name}")
about = prior.description
codes = {{}}  # of the coarser levels, {", ".join(self.coarser) or "of which there are none"}: int64 [1, *grid] by name
drawn = sample_level(prior, Condition(codes=codes), about.grid, level=about.level, samples=[0])
"""

    def _make_condition(
        self, channels: int, blocks: int, *, spatial_dims: int, gated: bool = False
    ) -> ConditionEncoder:
        return ConditionEncoder(
            channels=channels,
            coarser=self.coarser,
            blocks=blocks,
            spatial_dims=spatial_dims,
            gated=gated,
            **self._told,
        )

    def _make_head(self, channels: int) -> CodeHead:
        return CodeHead(channels=channels, codebook_size=self.codebook_size, codes_per_position=self.codes_per_position)

    def _make_embedding(self, channels: int) -> CodeEmbedding:
        return CodeEmbedding(
            codebook_size=self.codebook_size, channels=channels, codes_per_position=self.codes_per_position
        )

    def _make_taps(self, channels: int, offsets: Sequence[Offset], *, shared: bool) -> CodeTaps:
        return CodeTaps(
            codebook_size=self.codebook_size,
            channels=channels,
            offsets=offsets,
            codes_per_position=self.codes_per_position,
            shared=shared,
        )

    @property
    @abstractmethod
    def units(self) -> list[nn.Module]:
        """Modules that features pass one after the other, which hold most of the weights; each is sharded by itself.

        All modules of these classes are units, wherever they stand.
        """

    @abstractmethod
    def features(self, codes: Tensor, condition: Condition) -> Tensor:
        """Features `[B, *grid, E]` of int64 codes `[B, *grid, G]`; those of a position see earlier positions only."""

    @abstractmethod
    def make_state(self, condition: Condition, batch: int, grid: Sequence[int]) -> Any:
        """Encode the condition, once, and preallocate for one batch and grid."""

    @abstractmethod
    def step_features(self, previous: Tensor | None, state: Any, position: int) -> Tensor:
        """Features `[B, E]` of one position, given int64 `[B, G]` of the one before; None at the first."""

    def forward(self, codes: Tensor, condition: Condition) -> Tensor:
        """Logits by teacher forcing.

        Args:
            codes: integers `[B, *grid]`, or `[B, *grid, G]` where G > 1.
            condition: what the prior is told beside them.

        Returns:
            `[B, *grid, K]`, or `[B, *grid, G, K]` where G > 1.

        Raises:
            DataError: where a code is out of range, or the condition is not what the prior was built for.
        """
        self._check(codes)
        several = codes.long() if self.codes_per_position > 1 else codes.long().unsqueeze(-1)
        return self.head(self.features(several, condition), several).view(*codes.shape, self.codebook_size)

    @torch.no_grad()
    def make_cache(self, condition: Condition, batch: int, grid: Sequence[int]) -> PriorCache:
        """A cache for sampling `batch` grids from their first code on; it holds the weights, laid out for steps."""
        with self._without_autocast():
            return PriorCache(
                state=self.make_state(condition, batch, tuple(grid)),
                length=prod(grid) * self.codes_per_position,
                head=self.head.make_state(),
            )

    @torch.no_grad()
    def step(self, previous: Tensor | None, cache: PriorCache) -> tuple[Tensor, PriorCache]:
        """Logits `[B, K]`, float32 at least, of the next code, in raster order, the G codes of a position in order.

        Args:
            previous: int64 `[B]`, the codes before; None at the first.
            cache: of `make_cache`, or of the step before; it is used up.

        Raises:
            ValueError: where the grid is already complete, or `previous` is missing after the first code.
        """
        if cache.position >= cache.length:
            raise ValueError(f"the cache was made for {cache.length} codes, all of which are drawn; make a new one")
        if (cache.position > 0) if previous is None else (cache.position == 0):
            raise ValueError("previous must be None at the first code, and the one before later on")
        codes = cache.codes if previous is None else (*cache.codes, previous)
        features = cache.features
        # Not divmod, of which compilers know nothing where a number is to stand for any.
        position, within = cache.position // self.codes_per_position, cache.position % self.codes_per_position
        with self._without_autocast():
            if within == 0:
                before = torch.stack(codes, dim=1) if codes else None
                features, codes = self.step_features(before, cache.state, position), ()
            assert features is not None
            logits = self.head.step(features, codes, cache.head)
        # Noise is added to them: in half precision, many codes would share a value.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits, replace(cache, position=cache.position + 1, features=features, codes=codes)

    def _without_autocast(self) -> torch.autocast:
        return torch.autocast(next(self.parameters()).device.type, enabled=False)

    def _check(self, codes: Tensor) -> None:
        several = self.codes_per_position
        if several > 1 and (codes.shape[-1] != several or codes.dim() != 2 + self.spatial_dims):
            raise DataError(
                f"codes must be [B, {self.spatial_dims} axes of the grid, G], of {several} per position on their last "
                f"axis; received {list(codes.shape)}"
            )
        if torch.compiler.is_compiling() or not codes.numel():
            return
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codebook_size:
            raise DataError(f"codes must be in 0 .. {self.codebook_size - 1}; received {low} .. {high}")
