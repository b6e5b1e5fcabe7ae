"""The autoencoder: any number of levels, coarse to fine, and one image decoder that sees them all.

Letters: B batch, C channels, H W image, h w a level's grid; `*size` and `*grid` where there are one, two or three axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import register_dataclass
from torch.nn import functional

from hvq.autoencoders.description import AutoencoderDescription
from hvq.autoencoders.level import Level, channels_last, join
from hvq.config import AutoencoderConfig
from hvq.errors import ConfigurationError, DataError
from hvq.level_names import in_level_order
from hvq.pretrained import PretrainedModule
from hvq.quantizers import LEARNING_STATE, Quantizer, QuantizerResult
from hvq.recomputation import recomputed

# Of pixels in [-1, 1]: the error of a reconstruction after a few steps, rather than of one after all of them.
_START_SCALE = 0.1


@dataclass(frozen=True)
class AutoencoderResult:
    """What `Autoencoder.forward` returns.

    Attributes:
        reconstruction: `[B, C, *size]`, not clamped.
        levels: the quantizer's result of each level, coarse to fine.
        prefixes: `[B, C, *size]`, the images of each level but the finest and those coarser than it, all finer ones
            absent, by the name of that level; empty unless they were asked for.
        log_scale: `[C]`, the logarithm of the scale of a distribution around the reconstruction, where it is learned.
    """

    reconstruction: Tensor
    levels: dict[str, QuantizerResult]
    prefixes: dict[str, Tensor] = field(default_factory=dict)
    log_scale: Tensor | None = None

    @property
    def codes(self) -> dict[str, Tensor]:
        """Codes int64 `[B, *grid]` by level name, coarse to fine; means `[B, *grid, D]` of a Gaussian level."""
        return {name: result.codes for name, result in self.levels.items()}


register_dataclass(AutoencoderResult)


class Autoencoder(PretrainedModule[AutoencoderDescription]):
    """A stack of levels: one is a VQ-VAE, two a VQ-VAE-2 (arXiv 1906.00446), and so on through the same code.

    Features are computed fine to coarse; then, coarse to fine, each level is quantized given what the coarser ones
    already decoded. Images of any size from the coarsest stride up are padded by reflection and cropped back.

    Args:
        levels: coarse to fine, with names that differ.
        decoder: the context of the finest level to an image, its ratio times larger.
        enlargements: of each level but the finest, by name: its vectors to the finest grid. Where given, the image
            decoder is told the vectors of all levels, enlarged and joined coarse to fine, in place of a context.
        merges_see_vectors: whether merges, too, are told the vectors of all levels coarser than theirs, enlarged, in
            place of a context; enlargements are then `StagedEnlargement`s.
        recompute: whether encoders, merges and the decoder are computed again in the backward pass, which takes time
            and spares memory; quantizers, and so what codebooks learn from, are computed once.
        scale_channels: C of the image where the scale of a discretized logistic likelihood of pixels is learned, one
            for each channel; 0 where it is not.

    Shapes:
        images `[B, C, H, W]`, floating point in [-1, 1]; codes int64 `[B, h, w]` by level name, or means
        `[B, h, w, D]` of a Gaussian level. Of networks of one axis or three, signals `[B, C, T]` and codes `[B, t]`, or
        volumes `[B, C, X, Y, Z]` and codes `[B, x, y, z]`.

    >>> from hvq.autoencoders import convolutional_autoencoder
    >>> model = convolutional_autoencoder(channels=1, levels={"top": {"ratio": 2}, "bottom": {"ratio": 4}}).eval()
    >>> codes = model.encode(torch.zeros(1, 1, 21, 32))
    >>> {name: tuple(code.shape) for name, code in codes.items()}
    {'top': (1, 3, 4), 'bottom': (1, 6, 8)}
    >>> model.decode(codes, size=(21, 32)).shape
    torch.Size([1, 1, 21, 32])

    What a configuration made is saved as a folder, loaded, and published (`hvq.pretrained.PretrainedModule`):

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     model.save_pretrained(f"{scratch}/autoencoder", image_size=(21, 32))
    ...     loaded = Autoencoder.from_pretrained(f"{scratch}/autoencoder")
    >>> torch.equal(loaded.decode(codes, size=(21, 32)), model.decode(codes, size=(21, 32)))
    True
    """

    kind_of_model = "autoencoder"
    description_type = AutoencoderDescription
    # What `build_autoencoder` made it of; None of one that was put together by hand.
    config: AutoencoderConfig | None = None
    # Axes of images; None of one whose networks were put together by hand, and know it themselves.
    spatial_dims: int | None = None

    def __init__(
        self,
        *,
        levels: Sequence[Level],
        decoder: nn.Module,
        enlargements: Mapping[str, nn.Module] | None = None,
        merges_see_vectors: bool = False,
        recompute: bool = False,
        scale_channels: int = 0,
    ) -> None:
        super().__init__()
        names = [level.name for level in levels]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"an autoencoder needs at least one level, of different names; received {names}")
        try:
            self.levels = nn.ModuleDict({level.name: level for level in levels})
        except KeyError as error:
            raise ConfigurationError(f"{', '.join(names)} cannot all be names of levels: {error.args[0]}") from None
        self.decoder = decoder
        if enlargements is not None and set(enlargements) != set(names[:-1]):
            raise ConfigurationError(
                f"enlargements are of every level but the finest, {', '.join(names[:-1]) or 'so of none'}; "
                f"received {', '.join(enlargements) or 'none'}"
            )
        if merges_see_vectors and enlargements is None:
            raise ConfigurationError("merges see vectors that are enlarged; give enlargements, or set it to false")
        self.enlargements = None if enlargements is None else nn.ModuleDict(dict(enlargements))
        self.merges_see_vectors = merges_see_vectors
        self.recompute = recompute
        start = torch.full((scale_channels,), math.log(_START_SCALE))
        self.log_scale = nn.Parameter(start) if scale_channels else None

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, coarse to fine."""
        return tuple(level.name for level in self._stack())

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizers by level name, coarse to fine."""
        return {level.name: level.quantizer for level in self._stack()}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per code and axis, by level name."""
        ratios = [level.ratio for level in self._stack()]
        return {name: math.prod(ratios[i:]) for i, name in enumerate(self.level_names)}

    def grids(self, size: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The code grid of each level for images of `size` (H, W).

        Raises:
            DataError: where an axis is smaller than the coarsest stride, or there are more or fewer than of images.
        """
        padded = self._padded_size(size)
        return {name: tuple(n // stride for n in padded) for name, stride in self.strides.items()}

    def freeze(self, names: Collection[str]) -> None:
        """Freeze some levels (`Level.freeze`).

        Raises:
            ConfigurationError: where one of the names is not a level.
        """
        if unknown := [name for name in names if name not in self.level_names]:
            raise ConfigurationError(f"no level {', '.join(unknown)}; the levels are {', '.join(self.level_names)}")
        for level in self._stack():
            if level.name in names:
                level.freeze()
                for name, parameter in self.named_parameters():
                    if name.startswith(self._seen_by_merges(level.name)):
                        # Codes of finer levels depend on it.
                        parameter.requires_grad_(False)

    # --- its folder ---

    def architecture(self) -> Mapping[str, Any]:
        """The field of its description that says how it is built.

        Raises:
            ConfigurationError: where it was put together by hand.
        """
        if self.config is None:
            raise ConfigurationError(
                "an autoencoder that was put together by hand is not made by a configuration, so that it cannot be "
                "saved as a folder; make it with build_autoencoder, or save its state_dict with safetensors"
            )
        return {"autoencoder": self.config}

    @classmethod
    def from_description(cls, description: AutoencoderDescription) -> Autoencoder:
        """An autoencoder as described, with fresh weights."""
        # Imported here: what makes autoencoders is made of this class.
        from hvq.autoencoders.build import build_autoencoder

        return build_autoencoder(description.autoencoder)

    def usage(self, name: str) -> str:
        """Python for the model card."""
        channels, axes = (self.config.channels, self.config.spatial_dims) if self.config else (1, 2)
        sides = ", ".join([str(4 * max(self.strides.values()))] * axes)
        return f"""
import torch

from hvq.autoencoders import Autoencoder

model = Autoencoder.from_pretrained("{name}")
images = torch.rand(1, {channels}, {sides}) * 2 - 1  # pixels in [-1, 1]
codes = model.encode(images)  # a tensor of integers for each level, coarse to fine
rebuilt = model.decode(codes)
"""

    # --- images to codes to images ---

    def forward(
        self, images: Tensor, kept_levels: Tensor | None = None, *, prefixes: bool = False
    ) -> AutoencoderResult:
        """Reconstruct images; writes nothing.

        Args:
            images: `[B, C, *size]`.
            kept_levels: int64 `[B]`, 1 or more, the number of coarsest levels that each sample is decoded from (level
                drop-out); all where None. Every level is quantized and counted all the same.
            prefixes: whether to decode, beside that, each level and those coarser than it alone, for all samples.
        """
        results, contexts = self._quantize(images)
        vectors, size = {name: result.vectors for name, result in results.items()}, images.shape[2:]
        of_prefixes = self._prefixes(vectors, contexts, size) if prefixes else {}
        if kept_levels is not None:
            # The coarsest level is always kept, and with it what it tells the next.
            vectors, contexts = self._of_kept(vectors, kept_levels), contexts[:1]
        return AutoencoderResult(self._crop(self._image(vectors, contexts), size), results, of_prefixes, self.log_scale)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Codes of images, by level name, coarse to fine."""
        return {name: result.codes for name, result in self._quantize(images)[0].items()}

    def decode(
        self, codes: Mapping[str, Tensor], size: Sequence[int] | None = None, absent: Collection[str] = ()
    ) -> Tensor:
        """Images `[B, C, *size]` of codes; with no level absent, exactly the reconstruction that `forward` gives.

        Args:
            codes: integers by level name, in any order; those of absent levels give the grid alone.
            size: of the images, (H, W), where the grid was padded; the whole grid where None.
            absent: names of levels to leave out, replaced by their absent vectors.

        Raises:
            DataError: where the grids do not belong together, or a code is out of range.
        """
        ordered = in_level_order(codes, self.level_names, "codes")
        self.check_grids(ordered, size)
        unknown = [name for name in absent if name not in ordered]
        if unknown:
            raise DataError(f"absent names {', '.join(unknown)}; the levels are {', '.join(self.level_names)}")
        vectors: dict[str, Tensor] = {}
        for level in self._stack():
            own = level.quantizer.decode(ordered[level.name]).to(self._dtype())
            vectors[level.name] = level.absent_like(own) if level.name in absent else own
        image = self._image(vectors, [])
        return image if size is None else self._crop(image, size)

    def latents(self, images: Tensor, level_name: str) -> Tensor:
        """Latents `[N, D]` of one level, padding left out; what its codebook is initialized from."""
        features = self._features(self._pad(images))
        context: Tensor | None = None
        vectors: dict[str, Tensor] = {}
        for level in self._stack():
            latents = level.latents(features[level.name], context)
            if level.name == level_name:
                mask = self._inside(level.name, latents.shape[2:], images.shape[2:], latents.device)
                flat = torch.movedim(latents, 1, -1)
                return flat.flatten(0, -2) if mask is None else flat[:, mask].flatten(0, -2)
            vectors[level.name] = level.quantizer(latents).vectors
            context = level.decode(vectors[level.name], self._told(level, vectors, context))
        raise DataError(f"no level {level_name!r}; the levels are {', '.join(self.level_names)}")

    def require_codes(self, what: str) -> None:
        """Refuse levels that have no codes, because `what` takes those of all levels.

        Raises:
            ConfigurationError: naming the levels.
        """
        if without := [name for name, quantizer in self.quantizers.items() if not quantizer.discrete]:
            raise ConfigurationError(
                f"{what} takes codes, and level {', '.join(without)} has none but the means of a gaussian bottleneck; "
                "train the autoencoder with another kind of quantizer there"
            )

    def without_padding(self, codes: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Codes at the positions that see at least one pixel of images of `size` (H, W), by level name.

        Args:
            codes: `[B, *grid]`, or `[B, *grid, G]`, by level name, in any order.
            size: of the images that they are of.
        """
        kept = {
            name: (slice(None), *(slice(n) for n in self._covered(name, size)))
            for name in in_level_order(codes, self.level_names, "codes")
        }
        return {name: codes[name][places] for name, places in kept.items()}

    def encoding_tensors(self) -> dict[str, Tensor]:
        """The tensors that determine `encode`: all but the image decoder, absent vectors and what only learns."""
        parts = ("levels.", *(part for name in self.level_names for part in self._seen_by_merges(name)))
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(parts) and name.split(".")[2] != "absent" and name.split(".")[-1] not in LEARNING_STATE
        }

    # --- parts of the walk ---

    def _stack(self) -> list[Level]:
        return list(self.levels.values())  # type: ignore[arg-type]  # ModuleDict is typed as holding any module

    def _dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    def _features(self, padded: Tensor) -> dict[str, Tensor]:
        features = {}
        current = padded
        for level in reversed(self._stack()):
            current = self._recomputed(level.encoder, current)
            features[level.name] = current
        return features

    def _quantize(self, images: Tensor) -> tuple[dict[str, QuantizerResult], list[Tensor]]:
        """The quantizer's result of each level, and the context that each but the finest gives to the next."""
        features = self._features(self._pad(images))
        results: dict[str, QuantizerResult] = {}
        contexts: list[Tensor] = []
        context: Tensor | None = None
        vectors: dict[str, Tensor] = {}
        for level in self._stack():
            latents = level.latents(features[level.name], context)
            mask = self._inside(level.name, latents.shape[2:], images.shape[2:], latents.device)
            results[level.name] = level.quantizer(latents, mask)
            if level is not self._stack()[-1]:
                vectors[level.name] = results[level.name].vectors
                told = self._told(level, vectors, context)
                context = self._recomputed(level.decode, vectors[level.name], told)
                contexts.append(context)
        return results, contexts

    def _told(self, level: Level, vectors: Mapping[str, Tensor], context: Tensor | None) -> Tensor | None:
        """What a level's merge is told of coarser ones: their context, or their vectors on its grid."""
        if not self.merges_see_vectors or self.enlargements is None:
            return context
        place = self.level_names.index(level.name)
        enlarged = [
            self.enlargements[name](channels_last(vectors[name]), stages=place - i)
            for i, name in enumerate(self.level_names[:place])
        ]
        return join(*enlarged) if enlarged else None

    def _seen_by_merges(self, name: str) -> tuple[str, ...]:
        """How names of tensors begin that enlarge a level's vectors for merges; to the finest grid none does."""
        stages = len(self.level_names) - 2 - self.level_names.index(name) if self.merges_see_vectors else 0
        return tuple(f"enlargements.{name}.{stage}." for stage in range(stages))

    def _of_kept(self, vectors: Mapping[str, Tensor], kept_levels: Tensor) -> dict[str, Tensor]:
        """The vectors by level name, those of finer levels absent where a sample does without.

        For the image alone: the codes of a level stay those that `encode` gives, whatever is absent above it.
        """
        return {
            level.name: level.mask_absent(vectors[level.name], kept_levels > i) if i else vectors[level.name]
            for i, level in enumerate(self._stack())
        }

    def _prefixes(
        self, vectors: Mapping[str, Tensor], contexts: Sequence[Tensor], size: Sequence[int]
    ) -> dict[str, Tensor]:
        """The images of the coarsest level, of the two coarsest ... of all but the finest, by the last one's name."""
        images, stack = {}, self._stack()
        for i, name in enumerate(self.level_names[:-1], start=1):
            finer = {level.name: level.absent_like(vectors[level.name]) for level in stack[i:]}
            images[name] = self._crop(self._image({**vectors, **finer}, contexts[:i]), size)
        return images

    def _image(self, vectors: Mapping[str, Tensor], contexts: Sequence[Tensor]) -> Tensor:
        """Images of the whole grid, from the vectors of all levels.

        Args:
            vectors: by level name.
            contexts: those of the coarsest levels that are known already.
        """
        *coarser, finest = self._stack()
        if self.enlargements is not None:
            enlarged = [self.enlargements[level.name](channels_last(vectors[level.name])) for level in coarser]
            return self._recomputed(self.decoder, join(*enlarged, vectors[finest.name]))
        context = contexts[-1] if contexts else None
        for level in coarser[len(contexts) :]:
            context = self._recomputed(level.decode, vectors[level.name], context)
        return self._recomputed(self.decoder, finest.decode(vectors[finest.name], context))

    def _recomputed(self, part: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        return recomputed(part, *inputs, when=self.recompute and self.training)

    def _inside(self, name: str, grid: Sequence[int], size: Sequence[int], device: torch.device) -> Tensor | None:
        """bool `[*grid]`, positions that see at least one pixel of the image; None where all do."""
        covered = self._covered(name, size)
        if covered == list(grid):
            return None
        mask = torch.zeros(tuple(grid), dtype=torch.bool, device=device)
        mask[tuple(slice(n) for n in covered)] = True
        return mask

    # --- sizes ---

    def _covered(self, name: str, size: Sequence[int]) -> list[int]:
        """Positions of a level along each axis that see a pixel of the image; those behind them see padding alone."""
        return [-(-n // self.strides[name]) for n in size]

    def _padded_size(self, size: Sequence[int]) -> tuple[int, ...]:
        stride = max(self.strides.values())
        if self.spatial_dims not in (None, len(size)):
            raise DataError(
                f"this autoencoder takes samples [B, C, *size] of {self.spatial_dims} axes; received a size of "
                f"{len(size)}, {'x'.join(map(str, size))}"
            )
        if any(n < stride for n in size):
            raise DataError(
                f"images of {'x'.join(map(str, size))} are smaller than the coarsest stride {stride}; "
                f"the smallest size is {'x'.join([str(stride)] * len(size))}"
            )
        return tuple(-(-n // stride) * stride for n in size)

    def _pad(self, images: Tensor) -> Tensor:
        size = images.shape[2:]
        missing = [target - n for target, n in zip(self._padded_size(size), size, strict=True)]
        if any(missing):
            # functional.pad counts axes from the last.
            images = functional.pad(images, [n for m in reversed(missing) for n in (0, m)], mode="reflect")
        return channels_last(images)

    def _crop(self, images: Tensor, size: Sequence[int]) -> Tensor:
        for axis, length in enumerate(size, start=2):
            images = images.narrow(axis, 0, length)
        return images

    def _grid_of(self, name: str, codes: Tensor) -> tuple[int, ...]:
        """The grid of codes `[B, *grid]`, or `[B, *grid, G]` where the level's quantizer gives G > 1."""
        return tuple(codes.shape[1 : codes.dim() - len(self.quantizers[name].code_shape)])

    def check_grids(self, codes: Mapping[str, Tensor], size: Sequence[int] | None) -> None:
        """Refuse codes, coarse to fine, whose grids are not those of one size of images.

        Raises:
            DataError: naming the level.
        """
        batch = {name: code.shape[0] for name, code in codes.items()}
        if any(number != batch[self.level_names[0]] for number in batch.values()):
            raise DataError(f"codes must be of the same images at every level; received {batch}")
        grids = {name: self._grid_of(name, code) for name, code in codes.items()}
        coarsest = self.level_names[0]
        full = [n * self.strides[coarsest] for n in grids[coarsest]]
        expected = self.grids(full if size is None else size)
        for name, grid in grids.items():
            if grid != expected[name]:
                wanted = "x".join(map(str, expected[name]))
                found = "x".join(map(str, grid))
                of = "x".join(map(str, full if size is None else size))
                raise DataError(
                    f"codes of level {name} must be on a grid of {wanted} for images of {of}; it is {found}"
                )
