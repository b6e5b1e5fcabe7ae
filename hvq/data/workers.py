"""What processes that prepare samples do with signals."""

from __future__ import annotations

import signal

# Long enough for the step that is running, after which training ends and its workers with it.
_PATIENCE_SECONDS = 60


def outlive_signals(worker: int) -> None:
    """Have a worker go on where it is asked to end, since training still does its step, and takes a checkpoint.

    A keyboard's Ctrl-C and a scheduler's SIGTERM reach all processes of a job, workers too. They end with the training
    process; SIGTERM ends one that has not by then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_PATIENCE_SECONDS))
