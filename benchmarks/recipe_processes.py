"""Recipes in processes of their own that start at once: forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
# What recipes import, so that a start takes a tenth of a second instead of several.
_IMPORTS = ["hvq.evaluation.evaluate", "hvq.evaluation.run_report", "hvq.evaluation.samples", "hvq.training"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_IMPORTS)


@dataclass(frozen=True)
class Ended:
    """How a recipe ended: the exit code of its first process (negative: a signal's), and all that was printed."""

    code: int
    said: str

    @property
    def is_sentence(self) -> bool:
        """Whether it failed as it should: a code other than 0, one sentence, no traceback."""
        lines = [line for line in self.said.splitlines() if line.startswith("error")]
        return self.code == 1 and len(lines) == 1 and "Traceback" not in self.said


class RecipeProcesses:
    """The processes of one recipe that runs.

    Args:
        processes: those of a group, by rank.
        output: file that all of them print to.
    """

    def __init__(self, processes: Sequence[BaseProcess], output: Path) -> None:
        self._processes, self._output = processes, output

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL to all of them at once, or to one alone."""
        for process in self._processes if rank is None else [self._processes[rank]]:
            process.kill()

    def ask_to_stop(self, number: signal.Signals) -> None:
        """A signal to each of them, as schedulers send it."""
        for process in self._processes:
            if process.pid is not None:
                os.kill(process.pid, number)

    def wait(self, seconds: float) -> bool:
        """Wait for at most so long; whether all have ended."""
        self._processes[0].join(seconds)
        return not any(process.is_alive() for process in self._processes)

    def ended(self) -> Ended:
        """Wait until all have ended, and say how."""
        for process in self._processes:
            process.join()
        code = self._processes[0].exitcode
        return Ended(1 if code is None else code, self._output.read_text(errors="replace"))


@contextmanager
def started(
    name: str, *words: str | Path, processes: int = 1, limits: Mapping[int, int] | None = None
) -> Iterator[RecipeProcesses]:
    """A recipe with its command line, in one process or in a group; what still runs at the end of the block is killed.

    Args:
        name: of the recipe, such as `train_autoencoder`.
        words: of the command line.
        processes: how many share the work, as a launcher would start them.
        limits: of the `resource` module, by number, that each process sets for itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, port = Path(folder) / "output", _free_port()
        output.touch()
        group = [
            _context.Process(
                target=_recipe,
                args=(name, [str(word) for word in words], _environment(rank, processes, port), output, limits or {}),
                daemon=False,
            )
            for rank in range(processes)
        ]
        for process in group:
            process.start()
        running = RecipeProcesses(group, output)
        try:
            yield running
        finally:
            running.kill()
            for process in group:
                process.join()


def run_to_end(name: str, *words: str | Path, processes: int = 1, limits: Mapping[int, int] | None = None) -> Ended:
    """Run a recipe to its end."""
    with started(name, *words, processes=processes, limits=limits) as running:
        return running.ended()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    own = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    if processes == 1:
        return own
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return (
        own
        | {name: str(value) for name, value in ranks.items()}
        | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )


def _recipe(
    name: str, words: Sequence[str], environment: Mapping[str, str], output: Path, limits: Mapping[int, int]
) -> None:
    """What a process of its own does; it ends as the recipe does."""
    import resource

    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for limit, value in limits.items():
        # The signal would end the process; as an error it is what a full disk gives.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(limit, (value, value))
    sys.argv = [f"{name}.py", *words]
    sys.path.insert(0, str(RECIPES))
    runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
