"""What the benchmarks share: seconds, rates of the machine, peak memory of a process of its own, files of rows."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from hvq.files import write_json

RowType = TypeVar("RowType")

# A repetition beyond this many seconds is measured twice only.
SLOW_SECONDS = 3.0
BANDWIDTH_MIB = 256


# --- seconds ---------------------------------------------------------------------------------------------------------


def timed(repetition: Callable[[], Any], device: str) -> float:
    """Seconds of one repetition."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    repetition()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def computing_threads(number: int) -> Iterator[None]:
    """Within it, torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(repetitions: dict[str, Callable[[], Any]], count: int, device: str) -> dict[str, float]:
    """Median seconds of each, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in repetitions}
    first = {name: timed(run, device) for name, run in repetitions.items()}
    for turn in range(count):
        for name, run in repetitions.items():
            if turn < 2 or first[name] < SLOW_SECONDS:
                seconds[name].append(timed(run, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


# --- processes -------------------------------------------------------------------------------------------------------


def end(process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    """Close what a process reads, and wait until it has ended; one that does not is killed.

    Raises:
        RuntimeError: where it had to be.
    """
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise RuntimeError(f"a process did not end within {seconds:g} s of its input, and was killed") from None


# --- rates of the machine --------------------------------------------------------------------------------------------


def best_rate(device: str) -> float:
    """The best float32 rate of a square product and a large convolution, in operations a second."""
    matrix = torch.randn(2048, 2048, device=device)
    images = torch.randn(8, 256, 56, 56, device=device).contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(256, 256, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    work = {
        2 * 2048**3: lambda: matrix @ matrix,
        2 * 8 * 256 * 256 * 9 * 54 * 54: lambda: functional.conv2d(images, kernels),
    }
    return max(operations / min(timed(run, device) for _ in range(7)) for operations, run in work.items())


def best_bandwidth(device: str) -> float:
    """The best rate at which a large float32 buffer is read once, in bytes a second."""
    buffer = torch.ones(BANDWIDTH_MIB * 2**18, device=device)
    matrix, vector = buffer.view(-1, 4096), torch.ones(4096, device=device)
    compiled = torch.compile(_sums_of_products, dynamic=False)
    ways: dict[str, Callable[[], Any]] = {
        "sum": buffer.sum,
        # Its two halves, so that it reads each number once as well.
        "dot": lambda: torch.dot(*buffer.chunk(2)),
        "matrix-vector": lambda: matrix @ vector,
        "matrix-vector, compiled": lambda: compiled(matrix, vector),
    }
    seconds = [least for name, run in ways.items() if (least := _least_seconds(name, run, device)) is not None]
    return buffer.numel() * 4 / min(seconds)


def _sums_of_products(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector).sum(dim=1)


def _least_seconds(name: str, run: Callable[[], Any], device: str) -> float | None:
    """The best of some repetitions; None, with the reason said, where there is none."""
    try:
        run()
    except Exception as error:  # A machine without a compiler is measured all the same.
        print(f"skipped: bandwidth by {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return min(timed(run, device) for _ in range(7))


def about(device: str, rate: float, bandwidth: float | None = None) -> str:
    """Machine, versions and date."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    reading = "" if bandwidth is None else f"; best bandwidth {bandwidth / 1e9:.1f} GB/s"
    return f"{name}{threads}; torch {torch.__version__}; best rate {rate / 1e9:.0f} GFLOP/s{reading}; {date.today()}"


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_in_a_process(script: str, words: Iterable[str], what: str) -> float | None:
    """The MiB that a script prints when it is called with `words`; None, with the reason said, where it fails."""
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"no peak of {what}: {done.stderr[-500:]}", file=sys.stderr)
        return None
    return float(done.stdout)


def peak_beyond(run: Callable[[], Any], device: str) -> float:
    """MiB that the process holds at most while it runs, beyond what it holds before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return max(0, resident_kib("VmHWM") - before) / 2**10


def resident_kib(field: str) -> int:
    """A field of /proc/self/status; the high-water mark since the start where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])


# --- rows ------------------------------------------------------------------------------------------------------------


def load_rows(file: Path | None, row_type: Callable[..., RowType]) -> list[RowType]:
    """The rows that an earlier call has saved."""
    return [row_type(**row) for row in json.loads(file.read_text())] if file and file.exists() else []


def save_rows(file: Path | None, rows: Iterable[Any]) -> None:
    """All rows so far, where there is a file for them."""
    if file:
        write_json(file, [asdict(row) for row in rows])


def markdown(head: list[str], lines: Iterable[Iterable[str]]) -> str:
    """A table."""
    texts = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in texts)
