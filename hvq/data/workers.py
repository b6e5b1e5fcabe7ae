"""What processes that prepare samples do with signals, and when training is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def outlive_signals(worker: int) -> None:
    """Have a worker go on where it is asked to end, since training still does its step, and takes a checkpoint.

    A keyboard's Ctrl-C and a scheduler's SIGTERM reach all processes of a job, workers too. However long the step, the
    look and the checkpoint take, a worker waits for the training process, and ends where that has gone without it, if
    only by SIGKILL. A second SIGTERM ends it at once; that is also how the training process ends workers that do not
    end by themselves.
    """

    def wait_for_training(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, wait_for_training)
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    """Not by the parent's number alone, as torch's own watch does: where workers are forked by a server, which is the
    default from Python 3.14 on, that is the server's, and server and workers would wait for each other for ever."""
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)
