"""Numbers while training: a progress bar, one line per logging step, `metrics.jsonl`, and accelerate's trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from tqdm import tqdm

from hvq.files import flush, read_json_lines, write_file, writing
from hvq.storage import RunFolder
from hvq.training.optimization import Optimization


class TrainingLog:
    """The log of one stage; other processes than the main one write nothing.

    Args:
        stage: "autoencoder" or "prior.<level>", written in every line.
        file: `metrics.jsonl`; lines of this stage from `start_step` on are removed, as a resumed run writes them anew.
        accelerator: of the run.
        steps: in all, for the progress bar.
        start_step: where a resumed run goes on.
    """

    def __init__(self, *, stage: str, file: Path, accelerator: Accelerator, steps: int, start_step: int = 0) -> None:
        self.stage = stage
        self.file = file
        self.accelerator = accelerator
        self._is_main = accelerator.is_main_process
        self._started = time.perf_counter()
        if self._is_main:
            _cut_back(file, stage, start_step)
        if not accelerator.trackers:
            accelerator.init_trackers("training")
        self._bar = progress_bar(steps, stage, "step", accelerator, initial=start_step)
        self.start_clock()

    @classmethod
    def of(cls, stage: str, run: RunFolder, optimization: Optimization) -> Self:
        """The log of a stage of a run, from the optimization's step on."""
        return cls(
            stage=stage,
            file=run.metrics_lines,
            accelerator=optimization.accelerator,
            steps=optimization.config.steps,
            start_step=optimization.step_number,
        )

    def start_clock(self) -> None:
        """What `samples_per_second` measures begins now."""
        self._clock, self._steps = time.perf_counter(), 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What takes time inside is no part of what `samples_per_second` measures."""
        started = time.perf_counter()
        yield
        self._clock += time.perf_counter() - started

    def advance(self) -> None:
        """One optimizer step is done."""
        self._bar.update()
        self._steps += 1

    def samples_per_second(self, batch_size: int) -> float:
        """Over the steps since the clock was started, or since this was last asked."""
        rate = batch_size * self._steps / (time.perf_counter() - self._clock)
        self.start_clock()
        return rate

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One line of numbers, after `step` optimizer steps; numbers that are not finite are written as null."""
        if not self._is_main:
            return
        elapsed = time.perf_counter() - self._started
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row = {"stage": self.stage, "step": step, "time": round(elapsed, 3), **finite}
        with writing(self.file), self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        tqdm.write(f"{self.stage} {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
        with writing(self.file.with_name("tensorboard")):
            self.accelerator.log({f"{self.stage}/{name}": value for name, value in numbers.items()}, step=step)

    def flush(self) -> None:
        """Have the lines so far on disk, as a checkpoint is about to be that goes on from them."""
        if self._is_main and self.file.exists():
            with writing(self.file):
                flush(self.file)

    def say(self, *texts: str | None) -> None:
        """Sentences for the person who watches; None is nothing to say."""
        for text in texts:
            if self._is_main and text is not None:
                tqdm.write(text)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()


def progress_bar(total: int, what: str, unit: str, accelerator: Accelerator, initial: int = 0) -> tqdm[Any]:
    """A bar with rate and time left on the main process; none where the output is a file rather than a terminal."""
    # tqdm takes None for "only on a terminal".
    disable = None if accelerator.is_main_process else True
    return tqdm(total=total, initial=initial, desc=what, unit=unit, disable=disable, dynamic_ncols=True)


def _cut_back(file: Path, stage: str, step: int) -> None:
    kept = [row for row in read_json_lines(file) if row.get("stage") != stage or row.get("step", 0) <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_file(file, write)
