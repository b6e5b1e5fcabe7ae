"""Large images encoded and decoded in tiles that overlap, to the codes and pixels of the whole image in one.

Letters: B batch, C channels, H W image, h w a level's grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from hvq.autoencoders.receptive_field import ReceptiveField
from hvq.autoencoders.stack import Autoencoder
from hvq.errors import ConfigurationError
from hvq.level_names import in_level_order


@dataclass(frozen=True)
class _Segment:
    """A tile along one axis, in pixels: what it sees, and what of it is kept."""

    start: int
    stop: int
    kept_start: int
    kept_stop: int


def needed_overlap(model: Autoencoder, work: Literal["encode", "decode"]) -> int:
    """Pixels that tiles have to see beyond what is kept of them, on every side, for exact codes or pixels.

    It is worked out from the modules, and a multiple of the coarsest stride.

    Args:
        model: the autoencoder.
        work: for images to codes, or for codes to images.

    Raises:
        ConfigurationError: where a module may see all of an image, such as attention, or is one of a user's own.

    >>> from hvq.autoencoders import convolutional_autoencoder
    >>> model = convolutional_autoencoder(channels=3, levels={"top": {"ratio": 2}, "bottom": {"ratio": 4}})
    >>> needed_overlap(model, "encode"), needed_overlap(model, "decode")
    (80, 48)
    """
    fields = [ReceptiveField(model, axis) for axis in range(_axes(model))]
    reaches = [field.of_encoding() if work == "encode" else field.of_decoding() for field in fields]
    return _rounded_up(max(reaches), fields[0].stride)


@torch.no_grad()
def encode_tiled(model: Autoencoder, images: Tensor, *, tile: int, overlap: int | None = None) -> dict[str, Tensor]:
    """`model.encode`, of which no forward sees more than a tile; for evaluation mode.

    Codes are those of the whole image, in float32 but for near-ties that rounding decides.

    Args:
        model: the autoencoder.
        images: `[B, C, H, W]` in [-1, 1], of any size that `encode` takes; on any device.
        tile: pixels per side that a forward sees at most, the overlap among them.
        overlap: pixels that a tile sees beyond what is kept of it, on every side; what is needed by default
            (`needed_overlap`). With less, or where a network sees all of an image, codes near the borders of tiles are
            not those of the whole image.

    Returns:
        Codes by level name, coarse to fine, on the device of the images.

    Raises:
        ConfigurationError: where a tile is not larger than its overlap, or the overlap has to be given.
        DataError: where images are smaller than the coarsest stride.

    >>> from hvq.autoencoders import convolutional_autoencoder
    >>> model = convolutional_autoencoder(channels=1, levels={"top": {"ratio": 4, "residual_blocks": 0}}).eval()
    >>> images = torch.rand(1, 1, 37, 150) * 2 - 1
    >>> codes = encode_tiled(model, images, tile=48)
    >>> torch.equal(codes["top"], model.encode(images)["top"])
    True
    """
    size, strides = tuple(images.shape[2:]), model.strides
    grids = model.grids(size)
    tiling = _Tiling.of(model, "encode", tile, overlap)
    padded = [n * max(strides.values()) for n in next(iter(grids.values()))]
    codes: dict[str, Tensor] = {}
    for segments in tiling.tiles(padded):
        seen = images
        for axis, (segment, length) in enumerate(zip(segments, size, strict=True), start=2):
            seen = seen.index_select(axis, _reflected(segment, length).to(images.device))
        found = model.encode(seen.to(_device(model)))
        for name, code in found.items():
            if name not in codes:
                shape = (len(images), *grids[name], *code.shape[1 + len(size) :])
                codes[name] = torch.zeros(shape, dtype=code.dtype, device=images.device)
            codes[name][_kept(segments, strides[name])] = code[_within(segments, strides[name])].to(images.device)
    return codes


@torch.no_grad()
def decode_tiled(
    model: Autoencoder,
    codes: Mapping[str, Tensor],
    size: Sequence[int] | None = None,
    absent: Collection[str] = (),
    *,
    tile: int,
    overlap: int | None = None,
) -> Tensor:
    """`model.decode`, of which no forward sees more than a tile; for evaluation mode.

    Args:
        model: the autoencoder.
        codes: integers by level name, in any order, on any device.
        size: (H, W) of the images, where the grid was padded; the whole grid where None.
        absent: names of levels to leave out.
        tile: pixels per side that a forward gives at most, the overlap among them.
        overlap: pixels that it gives beyond what is kept of it, on every side; what is needed by default.

    Returns:
        Images `[B, C, H, W]`, on the device of the codes.

    Raises:
        ConfigurationError: where a tile is not larger than its overlap, or the overlap has to be given.
        DataError: as `decode`.

    >>> from hvq.autoencoders import convolutional_autoencoder
    >>> model = convolutional_autoencoder(channels=1, levels={"top": {"ratio": 4, "residual_blocks": 0}}).eval()
    >>> codes = {"top": torch.randint(512, (1, 9, 40))}
    >>> whole = model.decode(codes, size=(35, 157))
    >>> torch.allclose(decode_tiled(model, codes, size=(35, 157), tile=64), whole, atol=1e-5)
    True
    """
    ordered, strides = in_level_order(codes, model.level_names, "codes"), model.strides
    model.check_grids(ordered, size)
    coarsest = ordered[model.level_names[0]]
    padded = [n * max(strides.values()) for n in coarsest.shape[1 : 1 + _axes(model)]]
    size = padded if size is None else size
    tiling, images = _Tiling.of(model, "decode", tile, overlap), torch.zeros(0)
    for segments in tiling.tiles(padded):
        seen = {name: code[_seen(segments, strides[name])].to(_device(model)) for name, code in ordered.items()}
        found = model.decode(seen, absent=absent)
        if not images.numel():
            images = torch.zeros(len(coarsest), found.shape[1], *size, dtype=found.dtype, device=coarsest.device)
        # What is kept of the last tiles may reach into the padding.
        inside = [min(segment.kept_stop, length) for segment, length in zip(segments, size, strict=True)]
        places = tuple(slice(s.kept_start, stop) for s, stop in zip(segments, inside, strict=True))
        within = tuple(slice(s.kept_start - s.start, stop - s.start) for s, stop in zip(segments, inside, strict=True))
        images[(slice(None), slice(None), *places)] = found[(slice(None), slice(None), *within)].to(images.device)
    return images


@dataclass(frozen=True)
class _Tiling:
    """Sides and overlap of tiles, multiples of the coarsest stride, on which all else repeats."""

    tile: int
    overlap: int

    @classmethod
    def of(cls, model: Autoencoder, work: Literal["encode", "decode"], tile: int, overlap: int | None) -> _Tiling:
        stride = max(model.strides.values())
        wide = needed_overlap(model, work) if overlap is None else _rounded_up(overlap, stride)
        least = 2 * wide + stride
        if wide < 0 or tile < least:
            raise ConfigurationError(
                f"tiles must have at least {least} pixels per side to {work}: an overlap of {wide} on both, and "
                f"{stride}, the coarsest stride, that are kept; received {tile}"
            )
        return cls(tile // stride * stride, wide)

    def tiles(self, size: Sequence[int]) -> Iterator[tuple[_Segment, ...]]:
        """All tiles of an image of some size, multiples of the stride, a segment for each axis."""
        return itertools.product(*(self._segments(length) for length in size))

    def _segments(self, length: int) -> list[_Segment]:
        if length <= self.tile:
            return [_Segment(0, length, 0, length)]
        segments, start, kept = [], 0, 0
        while start + self.tile < length:
            stop = start + self.tile
            segments.append(_Segment(start, stop, kept, stop - self.overlap))
            kept = stop - self.overlap
            start = kept - self.overlap
        return [*segments, _Segment(length - self.tile, length, kept, length)]


def _rounded_up(pixels: int, stride: int) -> int:
    return -(-pixels // stride) * stride


def _axes(model: Autoencoder) -> int:
    """Axes of the grid; two of an autoencoder that was put together by hand of modules that do not tell."""
    dimensions = {len(part.kernel_size) for part in model.modules() if isinstance(part, _ConvNd)}
    return dimensions.pop() if len(dimensions) == 1 else 2


def _device(model: Autoencoder) -> torch.device:
    return next(model.parameters()).device


def _reflected(segment: _Segment, length: int) -> Tensor:
    """The pixels of an axis that a segment sees, in an image that is padded behind its end by reflection."""
    places = torch.arange(segment.start, segment.stop)
    return torch.where(places < length, places, 2 * (length - 1) - places)


def _seen(segments: Sequence[_Segment], stride: int) -> tuple[slice, ...]:
    return slice(None), *(slice(s.start // stride, s.stop // stride) for s in segments)


def _kept(segments: Sequence[_Segment], stride: int) -> tuple[slice, ...]:
    return slice(None), *(slice(s.kept_start // stride, s.kept_stop // stride) for s in segments)


def _within(segments: Sequence[_Segment], stride: int) -> tuple[slice, ...]:
    """What is kept, counted from the start of what is seen."""
    return slice(None), *(
        slice((s.kept_start - s.start) // stride, (s.kept_stop - s.start) // stride) for s in segments
    )
