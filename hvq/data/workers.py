"""What processes that prepare samples do with signals."""

from __future__ import annotations

import os
import signal

_SECONDS_BETWEEN_LOOKS = 5


def outlive_signals(worker: int) -> None:
    """Have a worker go on where it is asked to end, since training still does its step, and takes a checkpoint.

    A keyboard's Ctrl-C and a scheduler's SIGTERM reach all processes of a job, workers too. However long the step, the
    look and the checkpoint take, a worker waits for the training process, and ends where that has gone without it. A
    second SIGTERM ends it at once; that is also how the training process ends workers that do not end by themselves.
    """
    parent = os.getppid()

    def end_with_parent(*_: object) -> None:
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.alarm(_SECONDS_BETWEEN_LOOKS)

    def wait_for_parent(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, end_with_parent)
    signal.signal(signal.SIGTERM, wait_for_parent)
