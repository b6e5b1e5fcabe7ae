"""Signals that ask to stop: SIGTERM, as schedulers send it, and SIGINT, as a keyboard does."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from hvq.errors import TrainingStopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes the first signal instead of ending the process; a second one does what it always does.

    Python lets the main thread alone handle signals; in other threads nothing is noted, and signals act as ever. A
    signal that the process was started to ignore, as a shell starts what runs in the background, stays ignored.

    >>> import os
    >>> with StopSignals() as signals:
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     signals.name
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str:
        """Of the signal that came."""
        return "a signal to another process" if self.received is None else self.received.name

    def stopped(self, after: str) -> TrainingStopped:
        """What ends the run; where the signal came to another process, its number is taken for that of SIGTERM.

        Args:
            after: what was still done, for the person.
        """
        message = f"stopped by {self.name} after {after}; go on with --resume"
        return TrainingStopped(message, int(self.received or signal.SIGTERM))

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
