"""Codes drawn from priors, level by level; sample i depends on (seed, i) alone.

Letters: B batch, h w grid, K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvq.errors import ConfigurationError, DataError
from hvq.level_names import in_level_order
from hvq.priors.base import Prior
from hvq.priors.condition import Condition
from hvq.randomness import uniform


@dataclass(frozen=True)
class SamplingOptions:
    """How codes of one level are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the most probable code.
        top_k: draw among the k most probable codes only.
        top_p: draw among the most probable codes that together hold this share.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise ConfigurationError(
                "temperature must be at least 0, top_p in (0, 1] and top_k at least 1 or None; received "
                f"{self.temperature}, {self.top_p} and {self.top_k}"
            )


def draw(logits: Tensor, noise: Tensor, options: SamplingOptions) -> Tensor:
    """Codes int64 `[B]` from logits `[B, K]`, by the Gumbel-max rule.

    Args:
        logits: `[B, K]`.
        noise: `[B, K]` of standard Gumbel noise.
        options: temperature and the two cuts.

    >>> draw(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 5.0]]), SamplingOptions(top_k=1)).tolist()
    [1]
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / options.temperature
    if options.top_k is not None and options.top_k < logits.shape[-1]:
        smallest = logits.topk(options.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if options.top_p < 1:
        logits = _cut_to_share(logits, options.top_p)
    return (logits + noise.to(logits)).argmax(dim=-1)


def _cut_to_share(logits: Tensor, share: float) -> Tensor:
    """Keep the most probable codes up to and with the one that completes the share."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    return torch.full_like(logits, -torch.inf).scatter(-1, order, ordered.masked_fill(before >= share, -torch.inf))


def gumbel_noise(seed: int, samples: Sequence[int], level: str, position: int, codebook_size: int) -> Tensor:
    """Standard Gumbel noise `[B, K]`, float64 on the CPU, a function of (seed, sample, level, position)."""
    rows = np.asarray(samples)[:, None]
    draws = uniform(seed, "sample", level, rows, position, np.arange(codebook_size))
    return torch.from_numpy(-np.log(-np.log(draws)))


@torch.no_grad()
def sample_level(
    prior: Prior,
    condition: Condition,
    grid: Sequence[int],
    *,
    level: str,
    samples: Sequence[int],
    seed: int = 0,
    options: SamplingOptions | None = None,
    after_position: Callable[[], None] | None = None,
) -> Tensor:
    """Codes int64 `[B, *grid]` of one level, `[B, *grid, G]` where positions have several, on the prior's device.

    Args:
        prior: of the level, in evaluation mode.
        condition: for B samples.
        grid: (h, w).
        level: its name, one of the keys of the noise.
        samples: B numbers of samples, the other key beside the seed.
        seed: of the noise.
        options: temperature and cuts.
        after_position: called after each code of the grid, for a progress bar.
    """
    options = options or SamplingOptions()
    cache = prior.make_cache(condition, len(samples), grid)
    codes: list[Tensor] = []
    shape = code_shape(prior, grid)
    for position in range(math.prod(shape)):
        logits, cache = prior.step(codes[-1] if codes else None, cache)
        noise = gumbel_noise(seed, samples, level, position, prior.codebook_size)
        codes.append(draw(logits, noise.to(logits.device), options))
        if after_position is not None:
            after_position()
    return torch.stack(codes, dim=1).view(len(samples), *shape)


def sample_hierarchy(
    priors: Mapping[str, Prior],
    grids: Mapping[str, Sequence[int]],
    *,
    samples: Sequence[int],
    labels: Sequence[int] | None = None,
    seed: int = 0,
    options: Mapping[str, SamplingOptions] | None = None,
    chunk_size: int = 64,
    after_position: Callable[[], None] | None = None,
) -> dict[str, Tensor]:
    """Codes of all levels, coarse to fine, each drawn given the coarser ones and the class.

    Models run on chunks of one size, the last one filled up, so that a sample is the same whatever else is drawn.

    Args:
        priors: by level name, in any order, in evaluation mode.
        grids: (h, w) of each level.
        samples: numbers of the samples; sample i depends on (seed, i) and its label alone.
        labels: a class for each sample, -1 for none.
        seed: of the noise.
        options: temperature and cuts by level name.
        chunk_size: samples drawn at a time.
        after_position: called after each position of each chunk, for a progress bar.

    Returns:
        int64 `[n, h, w]`, or `[n, h, w, G]`, on the CPU, by level name, coarse to fine.

    Raises:
        DataError: where samples and labels differ in number, a label is out of range, or options name no level.
    """
    # A level is drawn once all that its prior is conditioned on has been.
    names = sorted(priors, key=lambda name: len(priors[name].coarser))
    priors, grids = {name: priors[name] for name in names}, in_level_order(grids, names, "grids")
    numbers = np.asarray(samples, np.int64)
    classes = np.full(len(numbers), -1) if labels is None else np.asarray(labels, np.int64)
    _check_request(names, len(numbers), len(classes), options or {})
    chunks = [
        _sample_chunk(
            priors,
            grids,
            _filled(numbers[start : start + chunk_size], chunk_size),
            _filled(classes[start : start + chunk_size], chunk_size),
            seed=seed,
            options=options or {},
            after_position=after_position,
        )
        for start in range(0, len(numbers), chunk_size)
    ]
    empty = {name: torch.zeros(0, *code_shape(prior, grids[name]), dtype=torch.int64) for name, prior in priors.items()}
    return {name: torch.cat([empty[name], *(chunk[name] for chunk in chunks)])[: len(numbers)] for name in grids}


def code_shape(prior: Prior, grid: Sequence[int]) -> tuple[int, ...]:
    """Of one sample's codes: `[*grid]`, or `[*grid, G]` where positions have several."""
    return (*grid, prior.codes_per_position) if prior.codes_per_position > 1 else tuple(grid)


def _check_request(names: Sequence[str], samples: int, labels: int, options: Mapping[str, SamplingOptions]) -> None:
    if samples != labels:
        raise DataError(f"each sample takes one label, -1 for none; received {samples} samples and {labels} labels")
    unknown = [name for name in options if name not in names]
    if unknown:
        raise DataError(f"options name {', '.join(unknown)}; the levels are {', '.join(names)}")


def _filled(values: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return np.concatenate([values, np.repeat(values[-1:], length - len(values))])


def _sample_chunk(
    priors: Mapping[str, Prior],
    grids: Mapping[str, Sequence[int]],
    samples: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    seed: int,
    options: Mapping[str, SamplingOptions],
    after_position: Callable[[], None] | None,
) -> dict[str, Tensor]:
    codes: dict[str, Tensor] = {}
    for name, prior in priors.items():
        device = next(prior.parameters()).device
        codes[name] = sample_level(
            prior,
            Condition(codes=codes, labels=torch.from_numpy(labels).to(device)),
            grids[name],
            level=name,
            samples=samples.tolist(),
            seed=seed,
            options=options.get(name),
            after_position=after_position,
        )
    return {name: code.cpu() for name, code in codes.items()}
