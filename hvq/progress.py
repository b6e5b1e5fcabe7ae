"""Bars that show how far something is: drawn in a terminal and in a notebook, plain lines now and then in a file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from tqdm.auto import tqdm
from tqdm.notebook import tqdm as notebook_tqdm

_SECONDS_BETWEEN_LINES = 60.0


class Progress(Protocol):
    """What there is to a bar, of tqdm's or of `ProgressLines`."""

    n: float
    total: float | None

    def update(self, n: float = 1) -> bool | None:
        """So many more are done."""
        ...

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Say anew what is being done."""
        ...

    def close(self) -> None:
        """No more comes."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress_bar(
    total: int, what: str, unit: str, *, shown: bool = True, initial: int = 0, scaled: bool = False
) -> Progress:
    """A bar with rate and time left, as the place where it is seen allows.

    In a terminal it is drawn and drawn again, in a notebook it is a widget, and where the output goes to a file it is a
    line now and then, the first after a minute.

    Args:
        total: when all is done.
        what: is being done.
        unit: what is counted, in the singular.
        shown: whether this process shows it; the main one does.
        initial: done before.
        scaled: whether numbers are shortened, as in 1.2M.
    """
    if shown and not issubclass(tqdm, notebook_tqdm) and not sys.stderr.isatty():
        return ProgressLines(total, what, unit, initial=initial, scaled=scaled)
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        unit_scale=scaled,
        disable=not shown,
        dynamic_ncols=True,
    )


class ProgressLines:
    """A line now and then: what is done of how much, the time it took, and the time that is left at this rate.

    Args:
        total: when all is done.
        what: is being done.
        unit: what is counted, in the singular.
        initial: done before.
        scaled: whether numbers are shortened, as in 1.2M.
        seconds: from one line to the next, at the least.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str,
        *,
        initial: int = 0,
        scaled: bool = False,
        seconds: float = _SECONDS_BETWEEN_LINES,
    ) -> None:
        self.n: float = initial
        self.total: float | None = total
        self._what, self._unit, self._scaled, self._seconds = what, unit, scaled, seconds
        self._initial = initial
        self._started = self._said = time.monotonic()

    def update(self, n: float = 1) -> bool | None:
        """So many more are done; says so where it is time to."""
        self.n += n
        now = time.monotonic()
        if now - self._said < self._seconds:
            return False
        self._said = now
        tqdm.write(self._line(now - self._started))
        return True

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Say anew what is being done, in the next line."""
        self._what = desc or self._what

    def close(self) -> None:
        """No more lines are due."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, elapsed: float) -> str:
        total, done = self.total or 0.0, self.n - self._initial
        left = "" if done <= 0 else f", {tqdm.format_interval((total - self.n) * elapsed / done)} left"
        number = tqdm.format_sizeof if self._scaled else "{:,.0f}".format
        return (
            f"{self._what}: {number(self.n)} of {number(total)} {self._unit}s, "
            f"{tqdm.format_interval(elapsed)} so far{left}"
        )
