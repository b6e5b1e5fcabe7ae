"""Soft bodies in space, made on the spot: balls, boxes, rings and crosses.

Letters: N volumes, X Y Z axes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hvq.data.sources import Sources, TensorImages
from hvq.errors import ConfigurationError
from hvq.randomness import uniform

HELD_OUT_EVERY = 5

_SMALLEST_VOLUMES = 10
_Points = NDArray[np.float64]


def _ball(points: _Points, radius: float) -> _Points:
    return np.sqrt((points**2).sum(0)) - radius


def _box(points: _Points, radius: float) -> _Points:
    return np.abs(points).max(0) - 0.8 * radius


def _ring(points: _Points, radius: float) -> _Points:
    around = np.sqrt((points[:2] ** 2).sum(0)) - 0.8 * radius
    return np.sqrt(around**2 + points[2] ** 2) - 0.3 * radius


def _cross(points: _Points, radius: float) -> _Points:
    far = np.sort(np.abs(points), axis=0)
    # Of the three bars the one along the axis that is farthest.
    return np.maximum(far[1] - 0.3 * radius, far[2] - 1.1 * radius)


# Signed distance to the surface, or near it; negative inside.
BODIES: dict[str, Callable[[_Points, float], _Points]] = {"ball": _ball, "box": _box, "ring": _ring, "cross": _cross}


def volume_sources(
    *, size: tuple[int, ...] = (16, 16, 16), channels: int = 1, volumes: int = 2_000, seed: int = 0
) -> Sources:
    """Volumes with one body each, a function of (seed, index); the class is its kind, and every fifth is held out.

    Place, size, density, sharpness of the surface and the axis that rings stand on are drawn. Nothing is -1.

    Args:
        size: (X, Y, Z).
        channels: 1.
        volumes: N, of both splits together.
        seed: of all that is drawn.

    Raises:
        ConfigurationError: where there are fewer than ten volumes, or more than one channel.

    >>> sources = volume_sources(size=(5, 7, 11), volumes=10)
    >>> len(sources.train), sources.validation.classes, sources.train.image(0).shape
    (8, ('ball', 'box', 'ring', 'cross'), torch.Size([1, 5, 7, 11]))
    """
    if volumes < _SMALLEST_VOLUMES or channels != 1:
        raise ConfigurationError(
            f"volumes are of one channel, and at least {_SMALLEST_VOLUMES}; received {channels} channels and {volumes} "
            "volumes"
        )
    indices = np.arange(volumes)
    held_out = indices % HELD_OUT_EVERY == 0

    def split(chosen: NDArray[np.bool_]) -> TensorImages:
        bodies = [_volume(index, size, seed) for index in indices[chosen].tolist()]
        return TensorImages(
            torch.from_numpy(np.stack(bodies)[:, None]),
            labels=indices[chosen] % len(BODIES),
            classes=list(BODIES),
            names=[f"volume-{index:05d}" for index in indices[chosen]],
            seed=seed,
        )

    return Sources(train=split(~held_out), validation=split(held_out))


def _volume(index: int, size: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """float32 `[X, Y, Z]` in [-1, 1]."""

    def drawn(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * float(uniform(seed, "volume", purpose, index))

    axes = [
        (np.arange(length) + 0.5) / length * 2 - 1 - drawn(f"place {i}", -0.3, 0.3) for i, length in enumerate(size)
    ]
    points = np.roll(np.stack(np.meshgrid(*axes, indexing="ij")), int(drawn("axis", 0, 3)), axis=0)
    body = list(BODIES.values())[index % len(BODIES)]
    inside = 1 / (1 + np.exp(drawn("sharpness", 12.0, 30.0) * body(points, drawn("radius", 0.35, 0.6))))
    return (2 * drawn("density", 0.6, 1.0) * inside - 1).astype(np.float32)
