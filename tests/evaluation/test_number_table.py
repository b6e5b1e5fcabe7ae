"""The table that recipes print: every number with its meaning, and what is left out with the reason."""

from __future__ import annotations

import re
from typing import Any

from hvq.evaluation.number_table import MEANINGS, meaning, number_table
from tests.runs import TrainedRun


def _numbers(metrics: dict[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= _numbers(value, (*above, name))
        elif isinstance(value, int | float):
            found[(*above, name)] = value
    return found


def test_every_number_of_a_run_has_one_line_and_a_meaning(trained_run: TrainedRun) -> None:
    metrics = trained_run.run.metrics()
    lines = [re.split(r"\s{2,}", line.strip(), maxsplit=2) for line in number_table(metrics)]
    assert lines[0] == ["value", "name", "meaning"]
    shown = {line[1]: line for line in lines[1:] if len(line) == 3}
    numbers = _numbers(metrics)
    assert len(numbers) > 40
    for path, value in numbers.items():
        assert shown[".".join(path)] == [f"{value:.5g}", ".".join(path), meaning(path)]
        assert meaning(path)
    extractor = metrics["generation"]["extractor"]
    assert lines[-1] == [f"features: {extractor}"]


def test_what_is_left_out_is_named_with_the_reason(trained_run: TrainedRun) -> None:
    metrics = trained_run.run.metrics()
    assert metrics["reconstruction"]["ms_ssim"] is metrics["reconstruction"]["lpips"] is None
    lines = [line.strip() for line in number_table(metrics)]
    for name, reason in (("ms_ssim", "161 pixels"), ("lpips", "31 pixels")):
        assert any(re.match(rf"-\s+reconstruction.{name}\s+left out, .*{reason}", line) for line in lines)
    assert any(re.match(r"-\s+classification_accuracy_score.top5\s+left out, .*5 classes", line) for line in lines)


def test_columns_are_aligned_and_other_values_are_not_shown() -> None:
    levels = {"top": {"usage": 0.5, "absent_stand_in": "learned vector"}, "a_long_name": {"perplexity": 12.25}}
    table = number_table({"levels": levels, "unknown": {"number": 3}, "about": {"split": "7 images"}})
    assert table == [
        "value  name                           meaning",
        "  0.5  levels.top.usage               share of the level's codes that occur",
        "12.25  levels.a_long_name.perplexity  how many codes, equally often used, would say as much",
        "    3  unknown.number",
    ]


def test_the_first_meaning_that_fits_is_the_one_of_the_number() -> None:
    """A name may end as another begins: no pattern hides a later one."""
    for pattern, text in MEANINGS.items():
        path = tuple(part.replace("*", "x") for part in pattern)
        assert meaning(path) == text
