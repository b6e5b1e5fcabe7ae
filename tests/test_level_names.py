from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvq.errors import HVQError
from hvq.level_names import default_level_names, in_level_order


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        (1, ("top",)),
        (2, ("top", "bottom")),
        (3, ("top", "middle", "bottom")),
        (5, ("level0", "level1", "level2", "level3", "level4")),
    ],
)
def test_default_names_go_coarse_to_fine(levels: int, names: tuple[str, ...]) -> None:
    assert default_level_names(levels) == names


@given(st.integers(1, 40))
def test_default_names_are_as_many_as_asked_and_distinct(levels: int) -> None:
    assert len(set(default_level_names(levels))) == levels


@pytest.mark.parametrize("levels", [0, -1])
def test_a_hierarchy_has_a_level(levels: int) -> None:
    with pytest.raises(HVQError, match=f"at least one level; received {levels}"):
        default_level_names(levels)


@given(data=st.data(), levels=st.integers(1, 11))
def test_shuffled_mappings_come_back_in_order(data: st.DataObject, levels: int) -> None:
    names = default_level_names(levels)
    shuffled = {name: names.index(name) for name in data.draw(st.permutations(names))}
    ordered = in_level_order(shuffled, names, "codes")
    assert list(ordered.items()) == list(zip(names, range(levels), strict=True))


def test_missing_and_unknown_levels_are_named() -> None:
    with pytest.raises(HVQError) as raised:
        in_level_order({"top": 1, "botom": 2}, ("top", "bottom"), "codes")
    assert str(raised.value) == "codes must name exactly the levels top, bottom; missing bottom and unknown botom"
