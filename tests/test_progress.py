"""How far something is, in a terminal, in a notebook and in a file."""

from __future__ import annotations

from typing import Any

import pytest
from tqdm.notebook import tqdm as notebook_tqdm
from tqdm.std import tqdm as terminal_tqdm

from hvq import progress
from hvq.progress import ProgressLines, progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("hvq.progress.time.monotonic", lambda: now[0])
    return now


def test_in_a_file_a_line_comes_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(2_000, "codes of train", "image", initial=500) as bar:
        assert isinstance(bar, ProgressLines)
        for _ in range(13):
            clock[0] += 10.0
            bar.update(50)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "codes of train: 800 of 2,000 images, 01:00 so far, 04:00 left",
        "codes of train: 1,100 of 2,000 images, 02:00 so far, 03:00 left",
    ]


def test_a_line_says_what_is_being_done_by_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressLines(7_000_000, "samples", "code", scaled=True, seconds=5.0)
    bar.set_description("samples, bottom")
    clock[0] += 5.0
    bar.update(3_500_000)
    assert capsys.readouterr().out == "samples, bottom: 3.50M of 7.00M codes, 00:05 so far, 00:05 left\n"


def test_what_is_over_sooner_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3, "codes", "image") as bar:
        clock[0] += 59.0
        bar.update(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_show_nothing(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hvq.progress.sys.stderr.isatty", lambda: terminal)
    with progress_bar(3, "codes", "image", shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_a_bar_is_drawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("hvq.progress.sys.stderr.isatty", lambda: True)
    with progress_bar(7, "prior.top", "step", initial=3) as bar:
        assert isinstance(bar, terminal_tqdm)
        bar.update(4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "prior.top: 100%" in captured.err
    assert "7/7" in captured.err


def test_in_a_notebook_it_is_a_widget_though_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Widget(notebook_tqdm):  # type: ignore[type-arg]
        def __init__(self, **options: Any) -> None:
            told.update(options)
            super().__init__(disable=True)

    monkeypatch.setattr(progress, "tqdm", Widget)
    bar = progress_bar(7, "prior.top", "step")
    assert isinstance(bar, Widget)
    assert (told["total"], told["disable"]) == (7, False)
