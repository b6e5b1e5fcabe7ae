"""What is asked of a hierarchy of priors, checked as a whole before the first code is drawn.

Letters: n samples, `*grid` the axes of a level, G codes per position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hvq.errors import DataError
from hvq.level_names import in_level_order
from hvq.priors.base import Prior
from hvq.priors.drawing import SamplingOptions
from hvq.priors.guidance import num_classes, require_guide, vector_size
from hvq.priors.known import Fixed, check_codes, check_fixed
from hvq.priors.vector_reader import check_rows


def code_shape(prior: Prior, grid: Sequence[int]) -> tuple[int, ...]:
    """Of one sample's codes: `[*grid]`, or `[*grid, G]` where positions have several."""
    return (*grid, prior.codes_per_position) if prior.codes_per_position > 1 else tuple(grid)


@dataclass(frozen=True)
class Request:
    """Samples of a hierarchy.

    Attributes:
        priors: by level name, in any order.
        grids: of each level, (h, w) or one or three lengths.
        numbers: int64 `[n]`, of the samples.
        labels: int64 `[n]`, -1 for none.
        options: how codes are drawn, by level name.
        given: codes of whole levels.
        fixed: codes and mask of some positions of a level.
        vectors: `[n, V]`, NaN throughout for none; None where no sample has one.
    """

    priors: Mapping[str, Prior]
    grids: Mapping[str, Sequence[int]]
    numbers: Tensor
    labels: Tensor
    options: Mapping[str, SamplingOptions]
    given: Mapping[str, Tensor]
    fixed: Mapping[str, Fixed]
    vectors: Tensor | None = None

    @property
    def level_names(self) -> tuple[str, ...]:
        """All levels, coarse to fine: a level is drawn once all that its prior is conditioned on is there.

        Levels that no prior tells apart, which are finer than all that have one, come in the order of `grids`.
        """
        return tuple(sorted(dict.fromkeys([*self.priors, *self.given]), key=self._depth))

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            DataError: where names, numbers of rows, labels, vectors or codes do not fit.
            ConfigurationError: where a prior without classes and vectors is to be guided.
        """
        self._check_names()
        if len(self.numbers) != len(self.labels):
            raise DataError(
                f"each sample takes one label, -1 for none; received {len(self.numbers)} samples and "
                f"{len(self.labels)} labels"
            )
        self._check_vectors()
        for name in self.level_names:
            if name in self.given:
                self._check_given(name)
            else:
                self._check_drawn(name)

    def _depth(self, name: str) -> tuple[float, int]:
        """Number of levels that are coarser, infinite where no prior tells, and the place among the grids."""
        grids = list(self.grids)
        place = grids.index(name) if name in self.grids else len(grids)
        if name in self.priors:
            return len(self.priors[name].coarser), place
        depths = [list(prior.coarser).index(name) for prior in self.priors.values() if name in prior.coarser]
        return min(depths, default=math.inf), place

    def _check_names(self) -> None:
        known = ", ".join(name for name in self.level_names if name in self.grids)
        for what, names in (("options name", self.options), ("given names", self.given), ("fixed names", self.fixed)):
            unknown = [name for name in names if name not in self.grids and name not in self.priors]
            if unknown:
                raise DataError(f"{what} {', '.join(unknown)}; the levels are {known}")
        in_level_order(self.grids, self.level_names, "grids")
        for name in self.fixed:
            if name in self.given:
                raise DataError(f"level {name} is given as a whole and fixed in part; pass one of the two")

    def _check_given(self, name: str) -> None:
        grid, codes = tuple(self.grids[name]), self.given[name]
        sizes = [prior.coarser[name] for prior in self.priors.values() if name in prior.coarser]
        # Nobody here knows how many codes a position of a level without a prior has: whatever is left of the shape.
        shape = (*grid, *codes.shape[1 + len(grid) :][:1])
        if name in self.priors:
            shape, sizes = code_shape(self.priors[name], grid), [self.priors[name].codebook_size]
        check_codes(
            codes,
            f"given codes of level {name}",
            shape=(len(self.numbers), *shape),
            codebook_size=min(sizes, default=None),
        )

    def _check_drawn(self, name: str) -> None:
        prior, grid = self.priors[name], tuple(self.grids[name])
        missing = [coarser for coarser in prior.coarser if coarser not in self.priors and coarser not in self.given]
        if missing:
            raise DataError(
                f"level {name} is drawn given {', '.join(prior.coarser)}; missing {', '.join(missing)}: pass a prior "
                "for each, or its codes as given"
            )
        require_guide(prior, name, self.options.get(name, SamplingOptions()).guidance)
        self._check_labels(num_classes(prior))
        if name in self.fixed:
            check_fixed(
                self.fixed[name],
                f"fixed codes of level {name}",
                shape=(len(self.numbers), *code_shape(prior, grid)),
                axes=len(grid),
                codebook_size=prior.codebook_size,
            )

    def _check_vectors(self) -> None:
        if self.vectors is None:
            return
        sizes = {name: size for name, prior in self.priors.items() if (size := vector_size(prior))}
        if not sizes:
            raise DataError("there are vectors, and none of the priors was trained with any; leave them out")
        for name, size in sizes.items():
            if tuple(self.vectors.shape) != (len(self.numbers), size) or not self.vectors.is_floating_point():
                raise DataError(
                    f"each sample takes one vector, floating point {[len(self.numbers), size]} for the prior of level "
                    f"{name}; received {self.vectors.dtype} {list(self.vectors.shape)}"
                )
        check_rows(self.vectors, "vectors")

    def _check_labels(self, classes: int) -> None:
        """What the prior itself refuses, but for all samples at once: a process must not fail on its share alone."""
        if not len(self.labels):
            return
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < -1 or high >= classes:
            known = f"0 .. {classes - 1}" if classes else "none, for it was trained without"
            raise DataError(f"labels must be classes of this prior ({known}), or -1; received {low} .. {high}")
