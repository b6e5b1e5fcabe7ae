"""The one order of the house: levels go coarse to fine, and travel as mappings from level name to value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from hvq.errors import HVQError

Value = TypeVar("Value")


def default_level_names(num_levels: int) -> tuple[str, ...]:
    """Names of `num_levels` levels, coarse to fine, when nobody gave any.

    >>> default_level_names(2)
    ('top', 'bottom')
    >>> default_level_names(4)
    ('level0', 'level1', 'level2', 'level3')
    """
    if num_levels < 1:
        raise HVQError(f"a hierarchy has at least one level; received {num_levels}")
    named = {1: ("top",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
    return named.get(num_levels, tuple(f"level{i}" for i in range(num_levels)))


def in_level_order(values: Mapping[str, Value], names: Sequence[str], what: str) -> dict[str, Value]:
    """`values` re-ordered to `names`; readers call this, since no mapping's own order is relied on.

    Args:
        values: one value per level, in any order.
        names: the level names, coarse to fine.
        what: what the values are, for the error ("codes", "priors").

    Raises:
        HVQError: where a name is missing or unknown.

    >>> in_level_order({"bottom": 1, "top": 0}, ("top", "bottom"), "codes")
    {'top': 0, 'bottom': 1}
    """
    missing = [name for name in names if name not in values]
    extra = [name for name in values if name not in names]
    if missing or extra:
        faults = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(extra)}"] * bool(extra)
        raise HVQError(f"{what} must name exactly the levels {', '.join(names)}; {' and '.join(faults)}")
    return {name: values[name] for name in names}
