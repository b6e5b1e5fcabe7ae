"""Codes drawn from priors, level by level; sample i depends on (seed, i), its label and its vector alone.

Letters: B batch, n samples, `*grid` the axes of a level, K codebook size, G codes per position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from hvq.chunks import padded_rows
from hvq.distributed import Reduction
from hvq.priors.base import Prior
from hvq.priors.condition import Condition
from hvq.priors.drawing import SamplingOptions, draw, gumbel_noise
from hvq.priors.guidance import guided_logits, require_guide, vector_size, with_and_without_class
from hvq.priors.known import Fixed, check_fixed, flat_fixed
from hvq.priors.request import Request, code_shape

AfterPosition: TypeAlias = Callable[[str], None]
"""Is told the level after each code of the grid."""

AfterLevel: TypeAlias = Callable[[str, Tensor], None]
"""Is told a level and all of its codes, once they are drawn."""


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
    fixed: Fixed | None = None,
    after_position: Callable[[], None] | None = None,
) -> Tensor:
    """Codes int64 `[B, *grid]` of one level, `[B, *grid, G]` where positions have several, on the prior's device.

    Args:
        prior: of the level, in evaluation mode.
        condition: for B samples.
        grid: (h, w), or one or three lengths.
        level: its name, one of the keys of the noise.
        samples: B numbers of samples, the other key beside the seed.
        seed: of the noise.
        options: temperature, cuts and guidance.
        fixed: codes `[B, *grid]`, or `[B, *grid, G]`, and a mask, bool `[B, *grid]`, of the positions that keep them.
            Codes are drawn in raster order, so that a position sees the fixed ones before it, not those after it.
        after_position: called after each code of the grid, for a progress bar.

    Raises:
        ConfigurationError: where guidance is asked for, and the prior has neither classes nor vectors.
        DataError: where fixed codes do not fit.
    """
    options, shape = options or SamplingOptions(), code_shape(prior, grid)
    next_logits = _Logits(prior, condition, len(samples), grid, level=level, guidance=options.guidance)
    codes: list[Tensor] = []
    kept = None if fixed is None else _kept(prior, fixed, len(samples), grid, level)
    for position in range(math.prod(shape)):
        logits = next_logits(codes[-1] if codes else None)
        noise = gumbel_noise(seed, samples, level, position, prior.codebook_size)
        drawn = draw(logits, noise.to(logits.device), options)
        codes.append(drawn if kept is None else torch.where(kept[1][:, position], kept[0][:, position], drawn))
        if after_position is not None:
            after_position()
    return torch.stack(codes, dim=1).view(len(samples), *shape)


def sample_hierarchy(
    priors: Mapping[str, Prior],
    grids: Mapping[str, Sequence[int]],
    *,
    samples: Sequence[int],
    labels: Sequence[int] | None = None,
    vectors: Tensor | None = None,
    seed: int = 0,
    options: Mapping[str, SamplingOptions] | None = None,
    given: Mapping[str, Tensor] | None = None,
    fixed: Mapping[str, Fixed] | None = None,
    chunk_size: int = 64,
    reduction: Reduction | None = None,
    after_position: AfterPosition | None = None,
    after_level: AfterLevel | None = None,
) -> dict[str, Tensor]:
    """Codes of all levels, coarse to fine, each drawn given the coarser ones, the class and the vector.

    Models run on chunks of one size, the last one filled up, so that a sample is the same whatever else is drawn. A
    level is drawn for all samples before the next one is begun; processes take chunks in turn, and all get everything.

    Args:
        priors: by level name, in any order, in evaluation mode; a level whose codes are given needs none.
        grids: of each level, (h, w) or one or three lengths.
        samples: numbers of the n samples; sample i depends on (seed, i), its label and its vector alone.
        labels: a class for each sample, -1 for none.
        vectors: `[n, V]`, a vector for each sample, NaN throughout for none, where priors are conditioned on them.
        seed: of the noise.
        options: temperature, cuts and guidance by level name.
        given: codes `[n, *grid]`, or `[n, *grid, G]`, of levels that are taken as they are.
        fixed: for in-painting, by level name, such codes and a mask, bool `[n, *grid]`, of the positions that keep
            them.
        chunk_size: samples drawn at a time.
        reduction: over the processes that share the work.
        after_position: told the level after each code of each chunk of this process, for a progress bar.
        after_level: told each level that was drawn, and its codes, on every process.

    Returns:
        int64 `[n, *grid]`, or `[n, *grid, G]`, on the CPU, by level name, coarse to fine.

    Raises:
        DataError: where samples, labels and vectors differ in number, a label is out of range, vectors are not those of
            the priors, options, `given` or `fixed` name no level, their codes do not fit, or a level that another one
            is conditioned on has neither prior nor codes.
        ConfigurationError: where guidance is asked for, and the prior has neither classes nor vectors.
    """
    numbers = torch.tensor(list(samples), dtype=torch.int64)
    classes = torch.full_like(numbers, -1) if labels is None else torch.tensor(list(labels), dtype=torch.int64)
    request = Request(priors, grids, numbers, classes, options or {}, given or {}, fixed or {}, vectors)
    request.check()
    codes: dict[str, Tensor] = {}
    for name in request.level_names:
        if name in request.given:
            codes[name] = request.given[name].to("cpu", torch.int64)
            continue
        codes[name] = _draw_level(
            request,
            name,
            codes,
            seed=seed,
            chunk_size=chunk_size,
            reduction=reduction or Reduction(),
            after_position=after_position,
        )
        if after_level is not None:
            after_level(name, codes[name])
    return codes


class _Logits:
    """Logits `[B, K]` of code after code of a batch of grids, guided where that is asked for."""

    def __init__(
        self, prior: Prior, condition: Condition, batch: int, grid: Sequence[int], *, level: str, guidance: float
    ) -> None:
        require_guide(prior, level, guidance)
        self._prior, self._told, self._guidance = prior, condition.told, guidance
        # Also where no sample has a class: what a sample becomes must not depend on the labels of others.
        self._twice = guidance != 1
        if self._twice:
            condition, batch = with_and_without_class(condition), 2 * batch
        self._cache = prior.make_cache(condition, batch, grid)

    def __call__(self, previous: Tensor | None) -> Tensor:
        if self._twice and previous is not None:
            previous = previous.repeat(2)
        logits, self._cache = self._prior.step(previous, self._cache)
        return guided_logits(logits, self._told, self._guidance) if self._twice else logits


def _kept(prior: Prior, fixed: Fixed, batch: int, grid: Sequence[int], level: str) -> Fixed:
    shape, what = (batch, *code_shape(prior, grid)), f"fixed codes of level {level}"
    check_fixed(fixed, what, shape=shape, axes=len(grid), codebook_size=prior.codebook_size)
    return flat_fixed(fixed, codes_per_position=prior.codes_per_position, device=_device(prior))


def _device(prior: Prior) -> torch.device:
    return next(prior.parameters()).device


def _draw_level(
    request: Request,
    name: str,
    coarser: Mapping[str, Tensor],
    *,
    seed: int,
    chunk_size: int,
    reduction: Reduction,
    after_position: AfterPosition | None,
) -> Tensor:
    """Codes int64 `[n, *grid]`, or `[n, *grid, G]`, of one level on the CPU, on every process."""
    prior = request.priors[name]
    chunks = [rows for rows in torch.arange(len(request.numbers)).split(chunk_size) if len(rows)]
    mine = chunks[reduction.rank :: reduction.size]
    drawn = [torch.zeros(0, *code_shape(prior, request.grids[name]), dtype=torch.int64)]
    for rows in mine:
        filled = padded_rows(rows, chunk_size)
        codes = sample_level(
            prior,
            _condition(request, prior, coarser, filled),
            request.grids[name],
            level=name,
            samples=request.numbers[filled].tolist(),
            seed=seed,
            options=request.options.get(name),
            fixed=_rows(request.fixed.get(name), filled),
            after_position=None if after_position is None else partial(after_position, name),
        )
        drawn.append(codes[: len(rows)].cpu())
    # Through the models' device, since the processes of several GPUs exchange nothing else.
    device, none = _device(prior), torch.zeros(0, dtype=torch.int64)
    order = reduction.concatenate(torch.cat([none, *mine]).to(device)).argsort().cpu()
    return reduction.concatenate(torch.cat(drawn).to(device)).cpu()[order]


def _condition(request: Request, prior: Prior, coarser: Mapping[str, Tensor], rows: Tensor) -> Condition:
    """What a prior is told of some samples."""
    device, vectors = _device(prior), request.vectors
    return Condition(
        codes={name: coarser[name][rows].to(device) for name in prior.coarser},
        labels=request.labels[rows].to(device),
        vector=None if vectors is None or not vector_size(prior) else vectors.cpu()[rows].to(device),
    )


def _rows(fixed: Fixed | None, rows: Tensor) -> Fixed | None:
    return None if fixed is None else (fixed[0].cpu()[rows], fixed[1].cpu()[rows])
