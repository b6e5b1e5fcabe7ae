"""Codes and images through a trained hierarchy, in forwards of one fixed size, shared out over processes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders import decode_tiled
from hvq.chunks import map_chunks
from hvq.data.pixels import kept_type, model_to_unit, unit_to_kept
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, DataError
from hvq.level_names import in_level_order
from hvq.priors import SamplingOptions, sample_hierarchy
from hvq.priors.known import Fixed, check_codes
from hvq.priors.sampling import AfterLevel, AfterPosition
from hvq.storage import Hierarchy

_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@dataclass(frozen=True)
class Generated:
    """Samples, on the CPU.

    Attributes:
        codes: int64 `[n, *grid]`, or `[n, *grid, G]`, by level name, coarse to fine.
        images: as they are kept, uint8 `[n, C, H, W]`; signals and volumes float32 `[n, C, *size]` in [-1, 1].
    """

    codes: dict[str, Tensor]
    images: Tensor


def decode_images(
    hierarchy: Hierarchy,
    codes: Mapping[str, Tensor],
    *,
    chunk_size: int,
    size: Sequence[int] | None = None,
    absent: Collection[str] = (),
    tile: int | None = None,
) -> Tensor:
    """Images of codes, float `[n, C, *size]` in [0, 1], on the CPU.

    Args:
        hierarchy: the trained system.
        codes: integers `[n, *grid]` by level name.
        chunk_size: rows of each forward.
        size: of the images; that of the training images by default.
        absent: levels to leave out.
        tile: pixels per side that a forward gives at most; None for whole images.

    Raises:
        DataError: where levels have different numbers of codes, or grids or codes do not fit the autoencoder.
    """
    size = hierarchy.image_size if size is None else size
    none = torch.zeros(0, hierarchy.channels, *size)
    return torch.cat([none, *_decoded(hierarchy, codes, chunk_size=chunk_size, size=size, absent=absent, tile=tile)])


def decode_kept(
    hierarchy: Hierarchy,
    codes: Mapping[str, Tensor],
    *,
    chunk_size: int,
    size: Sequence[int] | None = None,
    absent: Collection[str] = (),
) -> Tensor:
    """`decode_images`, as they are kept: of two axes uint8, no more than a chunk of which is ever held otherwise.

    Args:
        hierarchy: as there.
        codes: as there.
        chunk_size: as there.
        size: as there.
        absent: as there.

    Raises:
        DataError: as there.
    """
    size = hierarchy.image_size if size is None else size
    codes = in_level_order(codes, hierarchy.autoencoder.level_names, "codes")
    images = torch.empty(len(next(iter(codes.values()))), hierarchy.channels, *size, dtype=kept_type(size))
    start = 0
    for part in _decoded(hierarchy, codes, chunk_size=chunk_size, size=size, absent=absent):
        images[start : start + len(part)] = unit_to_kept(part)
        start += len(part)
    return images


@torch.no_grad()
def _decoded(
    hierarchy: Hierarchy,
    codes: Mapping[str, Tensor],
    *,
    chunk_size: int,
    size: Sequence[int],
    absent: Collection[str],
    tile: int | None = None,
) -> Iterator[Tensor]:
    """Images of codes, chunk by chunk, in [0, 1], on the CPU."""
    model = hierarchy.autoencoder
    device = next(model.parameters()).device
    codes = in_level_order(codes, model.level_names, "codes")
    rows = {name: len(code) for name, code in codes.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{number} of {name}" for name, number in rows.items())
        raise DataError(f"codes must be of the same images at every level; received {counts}")

    def decode(part: dict[str, Tensor]) -> dict[str, Tensor]:
        if tile is not None:
            return {"images": model_to_unit(decode_tiled(model, part, size, absent, tile=tile)).cpu()}
        on_device = {name: code.to(device) for name, code in part.items()}
        return {"images": model_to_unit(model.decode(on_device, size=size, absent=absent)).cpu()}

    for part in map_chunks(decode, codes, chunk_size):
        yield part["images"]


def generate(
    hierarchy: Hierarchy,
    *,
    samples: Sequence[int],
    labels: Sequence[int] | None,
    vectors: Tensor | None = None,
    seed: int,
    chunk_size: int,
    options: Mapping[str, SamplingOptions] | None = None,
    given: Mapping[str, Tensor] | None = None,
    fixed: Mapping[str, Fixed] | None = None,
    reduction: Reduction | None = None,
    after_position: AfterPosition | None = None,
    after_level: AfterLevel | None = None,
) -> Generated:
    """Draw codes from the priors and decode them; all processes get everything.

    They take chunks in turn to draw, which is nearly all of the work. Each decodes all codes for itself.

    Args:
        hierarchy: with a prior for every level that is not given.
        samples: their numbers; sample i depends on (seed, i), its label and its vector alone.
        labels: a class for each sample, -1 for none.
        vectors: `[n, V]`, a vector for each sample, NaN throughout for none, of priors that are conditioned on them.
        seed: of the noise.
        chunk_size: samples drawn at a time.
        options: how codes are drawn, by level name; what the priors were saved with by default. Those of levels that
            are given do nothing.
        given: codes `[n, *grid]`, or `[n, *grid, G]`, of levels that are taken as they are.
        fixed: for in-painting, by level name, such codes and a mask, bool `[n, *grid]`, of the positions that keep
            them.
        reduction: over the processes that share the work.
        after_position: told the level after each code of each chunk of this process, for a progress bar.
        after_level: told each level that was drawn, and its codes, on every process.

    Raises:
        CheckpointError: where a level has neither prior nor codes.
        DataError: where a label is not a class, vectors are not those of the priors, options or codes are for a level
            that there is not, or codes do not fit theirs.
        ConfigurationError: where guidance is asked for, and the prior has neither classes nor vectors; or a level has
            no codes.
    """
    given = given or {}
    _require_levels(hierarchy, given=given, options=options or {})
    check_level_codes(hierarchy, given, rows=len(samples), what="given codes of level ")
    codes = sample_hierarchy(
        hierarchy.priors,
        hierarchy.grids,
        samples=samples,
        labels=labels,
        vectors=vectors,
        seed=seed,
        options={**hierarchy.options, **(options or {})},
        given=given,
        fixed=fixed,
        chunk_size=chunk_size,
        reduction=reduction,
        after_position=after_position,
        after_level=after_level,
    )
    codes = in_level_order(codes, hierarchy.autoencoder.level_names, "codes")
    return Generated(codes, decode_kept(hierarchy, codes, chunk_size=chunk_size))


def _require_levels(hierarchy: Hierarchy, *, given: Collection[str], options: Collection[str]) -> None:
    """Refuse to draw where a level has neither prior nor codes, or options are of none."""
    hierarchy.autoencoder.require_codes("sampling")
    names = hierarchy.autoencoder.level_names
    missing = [name for name in names if name not in hierarchy.priors and name not in given]
    if missing:
        raise CheckpointError(f"sampling takes a prior for every level; train that of {', '.join(missing)} first")
    unknown = [name for name in options if name not in names]
    if unknown:
        raise DataError(f"options name {', '.join(unknown)}, which is not a level; the levels are {', '.join(names)}")


def check_level_codes(hierarchy: Hierarchy, codes: Mapping[str, Tensor], *, rows: int, what: str) -> None:
    """Refuse codes that are not those of the hierarchy's levels, on the grids of its images.

    Args:
        hierarchy: whose levels.
        codes: of some levels.
        rows: n.
        what: they are, for the error; the level's name follows.

    Raises:
        DataError: where there is no such level, or type, shape or range are not those of the level.
    """
    for name, code in codes.items():
        if name not in hierarchy.grids:
            raise DataError(f"{what}{name} are of no level; the levels are {', '.join(hierarchy.grids)}")
        check_codes(
            code,
            f"{what}{name}",
            shape=(rows, *level_code_shape(hierarchy, name)),
            codebook_size=hierarchy.autoencoder.quantizers[name].codebook_size,
        )


def level_code_shape(hierarchy: Hierarchy, level: str) -> tuple[int, ...]:
    """Of one image's codes of a level: `[*grid]`, or `[*grid, G]` where positions have several."""
    several = hierarchy.autoencoder.quantizers[level].codes_per_position
    return (*hierarchy.grids[level], several) if several > 1 else hierarchy.grids[level]


def covered_cells(mask: Tensor, *, grid: Sequence[int], stride: int) -> Tensor:
    """bool `[B, *grid]`: the cells of a level of which the mask marks every pixel.

    Args:
        mask: bool `[B, *size]`; beyond its edges it goes on by reflection, as images do.
        grid: of the level, (h, w) or one or three lengths.
        stride: pixels per cell and axis.

    >>> mask = torch.tensor([[[True, True, True, False], [True, True, True, True]]])
    >>> covered_cells(mask, grid=(1, 2), stride=2).tolist()
    [[[True, False]]]
    """
    missing = [n * stride - length for n, length in zip(grid, mask.shape[1:], strict=True)]
    # functional.pad counts axes from the last.
    margins = [n for m in reversed(missing) for n in (0, m)]
    hidden = functional.pad((~mask).float().unsqueeze(1), margins, mode="reflect")
    return _POOLS[len(grid)](hidden, stride).squeeze(1) == 0
