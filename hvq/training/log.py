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
from torch import Tensor
from tqdm import tqdm

from hvq.files import flush, read_json_lines, write_file, writing
from hvq.progress import progress_bar
from hvq.storage import RunFolder
from hvq.training.durations import duration
from hvq.training.optimization import Optimization
from hvq.training.trackers import StageTrackers

MEASURED = ("time", "images_per_second", "memory_gib")
"""What differs from run to run in lines that are otherwise the same, resumed or not."""

# In the file and for trackers alone: a line is to fit a terminal.
_NOT_SAID = ("learning_rate", "codebook_norm", "memory_gib")
# What the estimate of the time goes by.
_TIMED_STEPS = 20


class TrainingLog:
    """The log of one stage; other processes than the main one write nothing.

    Args:
        stage: "autoencoder" or "prior.<level>", written in every line.
        file: `metrics.jsonl`; lines of this stage from `start_step` on are removed, as a resumed run writes them anew.
        accelerator: of the run.
        steps: in all, for the progress bar.
        start_step: where a resumed run goes on.
        settings: of the run, nested plain values, which trackers keep beside the numbers.
    """

    def __init__(
        self,
        *,
        stage: str,
        file: Path,
        accelerator: Accelerator,
        steps: int,
        start_step: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.stage = stage
        self.file = file
        self.accelerator = accelerator
        self._is_main = accelerator.is_main_process
        self._started = time.perf_counter()
        # Before anything is written: a tracker may fail to start.
        self._trackers = StageTrackers(accelerator, file.parent, stage, start_step=start_step, settings=settings)
        if self._is_main:
            _cut_back(file, stage, start_step)
        self._bar = progress_bar(steps, stage, "step", shown=self._is_main, initial=start_step)
        self._timed_steps, self._timed_seconds, self._estimated = 0, 0.0, False
        self.start_clock()

    @classmethod
    def of(
        cls, stage: str, run: RunFolder, optimization: Optimization, settings: Mapping[str, Any] | None = None
    ) -> Self:
        """The log of a stage of a run, from the optimization's step on."""
        return cls(
            stage=stage,
            file=run.metrics_lines,
            accelerator=optimization.accelerator,
            steps=optimization.config.steps,
            start_step=optimization.step_number,
            settings=settings,
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
        steps, seconds = self._steps, time.perf_counter() - self._clock
        self._timed_steps, self._timed_seconds = self._timed_steps + steps, self._timed_seconds + seconds
        self.start_clock()
        return batch_size * steps / seconds

    def time_left(self, steps: int) -> str | None:
        """A sentence of how long `steps` steps more will take, once; None until enough have been timed, and after."""
        if self._estimated or self._timed_steps < _TIMED_STEPS or steps < 1:
            return None
        self._estimated = True
        seconds = steps * self._timed_seconds / self._timed_steps
        return f"{self.stage}: about {duration(seconds)} for the {steps:,} steps that are left, without looks between"

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """One line of numbers, after `step` optimizer steps; numbers that are not finite are written as null."""
        if not self._is_main:
            return
        elapsed = time.perf_counter() - self._started
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        row = {"stage": self.stage, "step": step, "time": round(elapsed, 3), **finite}
        with writing(self.file), self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        said = [f"{name} {value:.4g}" for name, value in numbers.items() if not name.startswith(_NOT_SAID)]
        tqdm.write(f"{self.stage} {step}: " + "  ".join(said))
        self._trackers.log(numbers, step)

    @property
    def takes_pictures(self) -> bool:
        """Whether a tracker of this process wants some."""
        return self._trackers.takes_pictures

    def show(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Pictures after `step` optimizer steps, uint8 `[H, W, 3]` by name, for the trackers."""
        self._trackers.show(pictures, step)

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
        """End the progress bar, and the trackers' runs."""
        self._bar.close()
        self._trackers.close()


def _cut_back(file: Path, stage: str, step: int) -> None:
    kept = [row for row in read_json_lines(file) if row.get("stage") != stage or row.get("step", 0) <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_file(file, write)
