"""A whole run in seconds: tiny images, a tiny hierarchy, and recipes called as a person calls them."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hvq.config import RunConfig
from hvq.data import CodeExtraction, CodeFolder, Sources, build_sources
from hvq.data.code_files import empty_counts
from hvq.distributed import Reduction
from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.samples import sample_run
from hvq.files import read_tensors
from hvq.priors import Prior
from hvq.storage import RunFolder, load_hierarchy
from hvq.training import extract_codes, fit_autoencoder, fit_prior
from hvq.training.processes import make_accelerator

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
CLASSES = ("block", "columns", "rows")
TRAIN_IMAGES, HELD_OUT_IMAGES = 47, 23
LEVELS = ("top", "bottom")


def _picture(label: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """16x16 shades: a block, columns or rows, each with a place and a brightness of its own, and a little noise."""
    brightness, place = generator.uniform(120, 250), int(generator.integers(0, 8))
    picture = generator.uniform(0, 20, (16, 16))
    if CLASSES[label] == "block":
        picture[place : place + 8, place : place + 8] += brightness - 20
    else:
        stripes = np.arange(16) % 8 < 1 + place // 2
        picture += (brightness - 20) * (stripes[None, :] if CLASSES[label] == "columns" else stripes[:, None])
    return picture.astype(np.uint8)


def write_images(folder: Path) -> Path:
    """Images as a person has them: a folder for each split, with a folder for each class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("validation", HELD_OUT_IMAGES)):
        for i in range(count):
            label = i % len(CLASSES)
            path = folder / split / CLASSES[label] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_picture(label, generator)).save(path)
    return folder


def tiny_config(images: Path) -> RunConfig:
    """Two levels, a prior for each, and no more steps than it takes to see that they learn."""
    level = {"width": 8, "residual_blocks": 1, "residual_width": 4}
    training = {"batch_size": 12, "learning_rate": 3e-3, "warmup_steps": 2, "log_every": 1}
    often = {"evaluate_every": 5, "checkpoint_every": 100}
    prior_training = {**training, **often, "steps": 12, "average_decay": 0.7}
    fields = {
        "seed": 3,
        "chunk_size": 7,
        "data": {"kind": "folder", "path": str(images), "size": [16, 16], "channels": 1, "augmentation": {"shift": 1}},
        "autoencoder": {
            "channels": 1,
            "levels": {
                "top": {**level, "ratio": 2, "codebook_size": 11, "code_dimension": 5},
                "bottom": {**level, "ratio": 4, "codebook_size": 13, "code_dimension": 3},
            },
            "decoder": level,
            "level_dropout": 0.25,
        },
        "autoencoder_training": {**training, **often, "steps": 40, "learning_rate": 1e-2, "continuous_steps": 0},
        "extraction": {"augmented_epochs": 2, "images_per_shard": 17},
        "priors": {
            "top": {"model": {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0}, "training": prior_training},
            "bottom": {"model": {"width": 8, "layers": 1, "heads": 2, "dropout": 0.2}, "training": prior_training},
        },
        "sampling": {"samples_per_class": 5},
        "evaluation": {"generated_per_class": 7, "classifier_steps": 11, "classifier_seeds": 2},
    }
    return RunConfig.model_validate(fields)


def changed(config: RunConfig, **values: Any) -> RunConfig:
    """The configuration with some fields changed; `a__b=1` stands for the field `a.b`."""
    plain = config.model_dump(mode="json")
    for path, value in values.items():
        *above, last = path.split("__")
        inner = plain
        for name in above:
            inner = inner[name]
        inner[last] = value
    return RunConfig.model_validate(plain)


@dataclass(frozen=True)
class TrainedRun:
    """A run, and what made it."""

    config: RunConfig
    run: RunFolder

    @property
    def sources(self) -> Sources:
        return build_sources(self.config.data, self.config.seed)

    def copied(self, path: Path) -> TrainedRun:
        shutil.copytree(self.run.path, path)
        return TrainedRun(self.config, RunFolder(path))


def train_everything(folder: Path) -> TrainedRun:
    """All stages, one after the other, on one thread as torchrun sets it for its processes."""
    torch.set_num_threads(1)
    config, run = tiny_config(write_images(folder / "images")), RunFolder(folder / "run")
    with redirect_stdout(io.StringIO()):
        fit_autoencoder(config, run)
        extract_codes(config, run)
        for level in LEVELS:
            fit_prior(config, run, level)
        sample_run(config, run, load_hierarchy(run), reduction=Reduction())
        evaluate(config, run, accelerator=make_accelerator(config, run))
    return TrainedRun(config, run)


def rewrite_codes(run: RunFolder, split: str, *, constant: str | None = None, **changes: Any) -> None:
    """Write the codes of a split anew, with changes to their description, and those of a level all 0."""
    there = CodeFolder(run.codes, split)
    extraction = CodeExtraction(run.codes, split, there.description.model_copy(update=changes))
    extraction.begin()
    counts = empty_counts(extraction.description)
    for shard in range(extraction.description.num_shards):
        batch, writer = there.fetch(np.array(extraction.description.rows(shard))), extraction.writer(shard)
        codes = {level: values * int(level != constant) for level, values in batch.codes.items()}
        writer.add(codes, labels=batch.labels, indices=batch.indices % there.num_images)
        for level, count in writer.close().items():
            counts[level] += count
    extraction.finish(counts)


@contextmanager
def drawing_precisions() -> Iterator[set[torch.dtype]]:
    """Precisions of the weights of all priors that draw a code meanwhile."""
    original, found = Prior.step, set[torch.dtype]()

    def step(self: Prior, *words: Any) -> Any:
        found.add(next(self.parameters()).dtype)
        return original(self, *words)

    Prior.step = step  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Prior.step = original  # type: ignore[method-assign]


def write_config(path: Path, config: RunConfig) -> Path:
    """The configuration as a file that recipes read."""
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return path


@dataclass(frozen=True)
class Outcome:
    """What a person sees of a recipe."""

    code: int
    out: str
    err: str


def run_recipe(name: str, *words: str | Path) -> Outcome:
    """What `python recipes/<name>.py words` does, without the seconds that another process takes to start."""
    argv, path = sys.argv, list(sys.path)
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [f"{name}.py", *map(str, words)]
    sys.path.insert(0, str(RECIPES))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.argv, sys.path[:] = argv, path
    return Outcome(code, out.getvalue(), err.getvalue())


def files_below(folder: Path) -> dict[str, bytes]:
    """Everything that lies in a folder, by relative path; nothing where there is no folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors_below(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all safetensors files in a folder."""
    return {
        f"{path.relative_to(folder).as_posix()}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in read_tensors(path, "tensors")[0].items()
    }


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not equal to the last bit, or that only one side has."""
    names = sorted(one.keys() | other.keys())
    return [n for n in names if n not in one or n not in other or not torch.equal(one[n], other[n])]


def numbers_of(metrics: dict[str, Any], path: str = "") -> dict[str, float]:
    """All numbers of `metrics.json` by dotted path, but for seconds."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict) and name != "seconds":
            found |= numbers_of(value, f"{path}{name}.")
        elif isinstance(value, int | float):
            found[f"{path}{name}"] = value
    return found
