"""Runs a function in several real gloo processes, for tests of what happens between processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_distributed

from hvq.training.processes import part
from recipes.command_line import run

TIMEOUT_SECONDS = 120.0

# A fork server that has imported torch once makes every later process start in a fraction of a second.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed", "accelerate", "torchmetrics"])


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What a launcher would set, so that accelerate finds the group as well."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def _child(
    function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], store: str, reply: Connection
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        torch_distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
        )
        # As bytes, for otherwise tensors would travel as shared memory, which ends with this process.
        answer = (True, pickle.dumps(function(*arguments)))
    except BaseException:
        answer = (False, pickle.dumps(traceback.format_exc()))
    reply.send(answer)
    reply.close()
    part()


@dataclass(frozen=True)
class Ended:
    """How a process of a recipe has ended.

    Attributes:
        code: its exit code, negative for the signal that killed it; None where it had not ended.
        errors: the lines of its standard error that name an error, as recipes say it or as tracebacks end.
    """

    code: int | None
    errors: list[str]


def _recipe(
    function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], said: tuple[Path, Path]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    for descriptor, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
    run(lambda: function(*arguments))


def end_in_processes(
    function: Callable[..., Any], processes: int, *arguments: Any, awaited: Sequence[int] | None = None
) -> list[Ended]:
    """Call `function(*arguments)` in each of several processes as a recipe is called, and see how each ends.

    They have what a launcher would tell them, and make their process group themselves. Nobody ends the others when one
    has failed, as a launcher would.

    Args:
        function: a function of a module's top level; `RANK` in the environment says in which process it is.
        processes: how many.
        arguments: plain values.
        awaited: ranks of those that are to end by themselves; all by default.

    Raises:
        TimeoutError: where one of these has not ended after 60 s.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        said = [(Path(folder) / f"out{rank}", Path(folder) / f"err{rank}") for rank in range(processes)]
        started = [
            _context.Process(
                target=_recipe, args=(function, arguments, _environment(rank, processes, port), said[rank])
            )
            for rank in range(processes)
        ]
        deadline = time.monotonic() + TIMEOUT_SECONDS
        try:
            for process in started:
                process.start()
            for rank in range(processes) if awaited is None else awaited:
                started[rank].join(max(0.0, deadline - time.monotonic()))
                if started[rank].exitcode is None:
                    raise TimeoutError(f"process {rank} did not end within {TIMEOUT_SECONDS:.0f} s")
            codes = [process.exitcode for process in started]
        finally:
            for process in started:
                process.kill()
                process.join()
        lines = [err.read_text().splitlines() for _, err in said]
    errors = [[line for line in some if re.match(r"error\b|\w*Error:", line)] for some in lines]
    return [Ended(code, some) for code, some in zip(codes, errors, strict=True)]


def _receive(replies: list[Connection], deadline: float) -> list[Any]:
    """What every process returned, by rank; the first failure of any process is raised at once."""
    results: dict[int, Any] = {}
    while len(results) < len(replies):
        pending = [reply for rank, reply in enumerate(replies) if rank not in results]
        ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(len(replies)) if rank not in results]
            raise TimeoutError(f"processes {missing} did not finish within {TIMEOUT_SECONDS:.0f} s")
        for reply in ready:
            rank = replies.index(reply)  # type: ignore[arg-type]
            try:
                succeeded, content = replies[rank].recv()
            except EOFError:
                raise RuntimeError(f"process {rank} died without an answer") from None
            if not succeeded:
                raise RuntimeError(f"process {rank} failed:\n{pickle.loads(content)}")
            results[rank] = pickle.loads(content)
    return [results[rank] for rank in range(len(replies))]


def run_in_processes(function: Callable[..., Any], processes: int, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in each of several processes that share one gloo process group.

    Args:
        function: a function of a module's top level; it asks `torch.distributed` for its rank.
        processes: how many.
        arguments: plain values, arrays, or tensors; every process is given its own copy.

    Returns:
        What each process returned, in the order of ranks.

    Raises:
        RuntimeError: with the traceback of the first process that failed.
        TimeoutError: where they have not all finished after 60 s.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        started: list[ForkServerProcess] = []
        replies: list[Connection] = []
        try:
            for rank in range(processes):
                receiver, sender = _context.Pipe(duplex=False)
                process = _context.Process(
                    target=_child,
                    args=(function, arguments, _environment(rank, processes, port), store, sender),
                    daemon=False,
                )
                process.start()
                sender.close()
                started.append(process)
                replies.append(receiver)
            results = _receive(replies, time.monotonic() + TIMEOUT_SECONDS)
            for process in started:
                process.join(timeout=5.0)
            return results
        finally:
            for process in started:
                process.kill()
                process.join()
