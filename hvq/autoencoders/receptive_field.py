"""How far the codes and pixels of an autoencoder see, worked out from its modules, exactly.

An interval is what is needed along one axis: the first and the last position, both of them included. It is followed
from what a part gives back to what it is given, each on its own grid. Borders of the image need no thought: a part that
pads by a constant pads a tile that ends there just so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvNd

from hvq.autoencoders.convolution import ResidualBlock, StagedEnlargement
from hvq.autoencoders.level import Level
from hvq.autoencoders.rezero import ReZeroBlock
from hvq.autoencoders.stack import Autoencoder
from hvq.errors import ConfigurationError

Interval: TypeAlias = tuple[int, int]

# What gives a position from the same one alone, in evaluation.
_POINTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)

_UNKNOWN = (
    "how far a {} sees is not known, and it may see all of an image, as attention and group norms do; give an overlap "
    "in pixels: where the network sees farther than that, codes and pixels near the borders of tiles are not those of "
    "the whole image"
)


def union(*intervals: Interval) -> Interval:
    """The smallest interval that holds all.

    >>> union((2, 3), (-1, 2))
    (-1, 3)
    """
    return min(first for first, _ in intervals), max(last for _, last in intervals)


def needed_by(module: nn.Module, interval: Interval, axis: int = 0) -> Interval:
    """What a module has to be given along an axis, so that it gives an interval as it does within anything larger.

    Args:
        module: convolutions, transposed ones, what works on each position alone, and `hvq`'s own blocks of these.
        interval: of what it gives.
        axis: of the grid.

    Raises:
        ConfigurationError: where it is of another class, and may see all positions, as attention and group norms do.

    >>> needed_by(nn.Conv2d(1, 1, 4, stride=2, padding=1), (5, 5))
    (9, 12)
    >>> needed_by(nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1), (9, 12))
    (4, 6)
    """
    if isinstance(module, _POINTWISE):
        return interval
    if isinstance(module, ResidualBlock | ReZeroBlock):
        return union(interval, needed_by(module.layers, interval, axis))
    # A class made of these, with a forward of its own, may do anything besides.
    if isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward:
        raise ConfigurationError(_UNKNOWN.format(type(module).__name__))
    if isinstance(module, nn.Sequential | StagedEnlargement):
        return reduce(lambda needed, part: needed_by(part, needed, axis), reversed(list(module)), interval)
    if isinstance(module, _ConvNd) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return _needed_by_convolution(module, interval, axis)
    raise ConfigurationError(_UNKNOWN.format(type(module).__name__))


def _needed_by_convolution(module: _ConvNd, interval: Interval, axis: int) -> Interval:
    assert not isinstance(module.padding, str)
    stride, padding = module.stride[axis], module.padding[axis]
    reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
    first, last = interval
    if module.transposed:
        # Position q of what is given is added to stride q - padding .. stride q - padding + reach.
        return -(-(first + padding - reach) // stride), (last + padding) // stride
    return stride * first - padding, stride * last - padding + reach


class ReceptiveField:
    """What an autoencoder needs for some of its codes or pixels, along one axis.

    Args:
        model: the autoencoder.
        axis: of the grid.
    """

    def __init__(self, model: Autoencoder, axis: int) -> None:
        self._model, self._axis = model, axis
        self._stack: list[Level] = list(model.levels.values())  # type: ignore[arg-type]

    @property
    def stride(self) -> int:
        """Pixels per code of the coarsest level: what all else repeats by."""
        return max(self._model.strides.values())

    def of_encoding(self) -> int:
        """Pixels that the codes within one of the coarsest level see beyond it, on the side where it is more."""
        intervals = [
            self._pixels_of_codes(place, (0, self.stride // self._model.strides[level.name] - 1))
            for place, level in enumerate(self._stack)
        ]
        first, last = union(*intervals)
        return max(-first, last - (self.stride - 1), 0)

    def of_decoding(self) -> int:
        """Pixels beyond a code of the coarsest level whose codes its pixels see, on the side where it is more."""
        reach = 0
        for name, (first, last) in self._codes_of_pixels((0, self.stride - 1)).items():
            stride = self._model.strides[name]
            reach = max(reach, -first * stride, (last + 1) * stride - self.stride)
        return reach

    def _needed(self, module: nn.Module | None, interval: Interval) -> Interval:
        return interval if module is None else needed_by(module, interval, self._axis)

    def _pixels_of_codes(self, place: int, interval: Interval) -> Interval:
        """Of the codes of a level, which are those of latents at the same positions."""
        level = self._stack[place]
        joined = self._needed(level.projection, interval)
        features = reduce(lambda needed, finer: self._needed(finer.encoder, needed), self._stack[place:], joined)
        if place == 0:
            return features
        above = self._needed(self._stack[place - 1].merge, joined)
        seen = [self._pixels_of_codes(other, codes) for other, codes in self._seen_with(place - 1, above).items()]
        return union(features, *seen)

    def _seen_with(self, place: int, interval: Interval) -> dict[int, Interval]:
        """Codes of a level and of coarser ones that its merge, or the image decoder, is given at some positions."""
        needed = {place: interval}
        if self._model.enlargements is not None and self._model.merges_see_vectors:
            for other in range(place):
                needed[other] = self._enlarged(other, interval, place - other)
        elif place > 0:
            above = self._needed(self._stack[place - 1].merge, interval)
            needed |= self._seen_with(place - 1, above)
        return needed

    def _codes_of_pixels(self, interval: Interval) -> dict[str, Interval]:
        joined, finest = self._needed(self._model.decoder, interval), len(self._stack) - 1
        if self._model.enlargements is None:
            needed = self._seen_with(finest, joined)
        else:
            needed = {finest: joined} | {place: self._enlarged(place, joined, None) for place in range(finest)}
        return {self._stack[place].name: codes for place, codes in needed.items()}

    def _enlarged(self, place: int, interval: Interval, stages: int | None) -> Interval:
        assert self._model.enlargements is not None
        module = self._model.enlargements[self._stack[place].name]
        parts: Sequence[nn.Module] = list(module)[:stages] if isinstance(module, StagedEnlargement) else [module]
        return reduce(lambda needed, part: self._needed(part, needed), reversed(parts), interval)
