"""The folder of a run: each stage finds there what the one before it left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hvq.config import RunConfig
from hvq.errors import CheckpointError
from hvq.files import read_json, read_json_lines, write_json


class RunFolder:
    """Where everything of a run lies.

    Args:
        path: the folder; made when something is first written.

    >>> RunFolder("runs/example").prior("top").as_posix()
    'runs/example/priors/top'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.autoencoder = self.path / "autoencoder"
        self.codes = self.path / "codes"
        self.samples = self.path / "samples"
        self.classifier = self.path / "evaluation" / "classifier"
        self.report = self.path / "report.html"
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.json"
        self.metrics_lines = self.path / "metrics.jsonl"

    def prior(self, level: str) -> Path:
        """The folder of one level's prior."""
        return self.path / "priors" / level

    def checkpoint(self, stage: str) -> Path:
        """The folder of a stage's training checkpoint; it goes when the stage is done."""
        return self.path / "checkpoints" / stage

    def save_config(self, config: RunConfig) -> None:
        """Write the validated whole."""
        write_json(self.config_file, config.model_dump(mode="json"))

    def load_config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
            CheckpointError: where the folder holds none, or one of another version.
        """
        content = read_json(self.config_file, "run configuration")
        try:
            return RunConfig.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"run configuration at {self.config_file}: {where}: {first['msg']}") from None

    def metrics(self) -> dict[str, Any]:
        """The numbers gathered so far."""
        return read_json(self.metrics_file, "metrics") if self.metrics_file.exists() else {}

    def lines(self) -> list[dict[str, Any]]:
        """The rows that training wrote."""
        return read_json_lines(self.metrics_lines)

    @contextmanager
    def timed(self, stage: str, *, write: bool = True) -> Iterator[None]:
        """Leave the seconds that a stage takes in `metrics.json`, as `seconds.<stage>`.

        Args:
            stage: its name.
            write: whether this process writes; one of them does.
        """
        started = time.perf_counter()
        yield
        if write:
            self.add_seconds(stage, time.perf_counter() - started)

    def write_metrics(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the numbers of an earlier evaluation, but not the seconds of stages; returns all of them."""
        return self._write({**numbers, "seconds": self.metrics().get("seconds", {})})

    def add_seconds(self, stage: str, seconds: float) -> dict[str, Any]:
        """Note how long a stage took; returns all numbers."""
        metrics = self.metrics()
        return self._write({**metrics, "seconds": {**metrics.get("seconds", {}), stage: round(seconds, 3)}})

    def _write(self, metrics: dict[str, Any]) -> dict[str, Any]:
        write_json(self.metrics_file, metrics)
        return metrics
