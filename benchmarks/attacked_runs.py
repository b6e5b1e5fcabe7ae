"""Tiny runs for attacks: images, configuration, what each stage needs and leaves, and what must hold of their files."""

from __future__ import annotations

import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recipe_processes import run_to_end

from hvq.errors import HVQError
from hvq.evaluation.samples import levels_left
from hvq.files import read_json, read_json_lines, read_tensors
from hvq.storage import RunFolder
from hvq.training.checkpoint_files import CheckpointFolders, read_checkpoint
from hvq.training.log import MEASURED

LEVELS = ("top", "bottom")
KINDS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "transformer", "width": 16, "layers": 1, "heads": 2},
    "pixelsnail": {
        "kind": "pixelsnail",
        "width": 16,
        "heads": 2,
        "residual_width": 8,
        "blocks": 1,
        "residual_blocks": 1,
    },
    "pixelcnn": {"kind": "pixelcnn", "width": 16, "layers": 2},
}


class AttackError(Exception):
    """A stage that ought to have ended well, and did not."""


@dataclass(frozen=True)
class Setting:
    """Where attacks are made.

    Attributes:
        folder: for everything.
        config: file that recipes read.
        done: a run of which every stage is done.
        chance: of when kills come.
    """

    folder: Path
    config: Path
    done: RunFolder
    chance: random.Random


# --- the run that is attacked ----------------------------------------------------------------------------------------


def write_images(folder: Path, count: int = 61) -> None:
    """Blocks and stripes of 16x16 pixels, in a folder for each class and split."""
    noise = np.random.default_rng(0)
    for i in range(count):
        picture = noise.uniform(0, 20, (16, 16))
        place, label = int(noise.integers(0, 8)), ("block", "rows")[i % 2]
        picture[place : place + 8, slice(None) if i % 2 else slice(place, place + 8)] += noise.uniform(100, 230)
        path = folder / ("validation" if i % 5 == 0 else "train") / label / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(path)


def configuration(images: Path, kind: str = "transformer", workers: int = 0, steps: int = 24) -> dict[str, Any]:
    """Two levels and their priors; checkpoints so often that many kills fall into the writing of one."""
    level = {"width": 16, "residual_blocks": 1, "residual_width": 8}
    training = {
        "steps": steps,
        "batch_size": 12,
        "micro_batches": 2,
        "warmup_steps": 2,
        "log_every": 2,
        "evaluate_every": 7,
        "checkpoint_every": 3,
        "average_decay": 0.7,
    }
    prior = {"model": KINDS[kind], "training": training}
    data = {"kind": "folder", "path": str(images), "size": [16, 16], "channels": 1, "workers": workers}
    return {
        "seed": 3,
        "chunk_size": 5,
        "data": {**data, "augmentation": {"shift": 1}},
        "autoencoder": {
            "channels": 1,
            "levels": {
                "top": {**level, "ratio": 2, "codebook_size": 11, "code_dimension": 5},
                "bottom": {**level, "ratio": 4, "codebook_size": 13, "code_dimension": 3},
            },
            "decoder": level,
        },
        "autoencoder_training": training,
        "extraction": {"augmented_epochs": 20, "images_per_shard": 17},
        "priors": dict.fromkeys(LEVELS, prior),
        "sampling": {"samples_per_class": 19},
    }


def write_configuration(path: Path, images: Path, **fields: Any) -> Path:
    """The configuration as a file."""
    path.write_text(json.dumps(configuration(images, **fields)))
    return path


STAGES: dict[str, tuple[str, ...]] = {
    "autoencoder": ("train_autoencoder", "--resume"),
    "prior.top": ("train_prior", "--level", "top", "--resume"),
    "prior.bottom": ("train_prior", "--level", "bottom", "--resume"),
    "codes": ("extract_codes", "--resume"),
    "samples": ("sample",),
}
# What must be there before a stage, and what the stage leaves.
NEEDS: dict[str, tuple[str, ...]] = {
    "autoencoder": (),
    "codes": ("autoencoder",),
    "prior.top": ("autoencoder", "codes"),
    "prior.bottom": ("autoencoder", "codes"),
    "samples": ("autoencoder", "codes", "priors"),
}
LEAVES = {
    "autoencoder": "autoencoder",
    "codes": "codes",
    "prior.top": "priors/top",
    "prior.bottom": "priors/bottom",
    "samples": "samples",
}


def words_of(stage: str, setting: Setting, run: RunFolder, config: Path | None = None) -> list[str]:
    """The command line that begins a stage, or goes on with it."""
    left = levels_left(run) if stage == "samples" else None
    going_on = [] if left is None else ["--from-codes", str(left)]
    return [*STAGES[stage], *going_on, "--config", str(config or setting.config), "--run-dir", str(run.path)]


def undisturbed(stage: str, setting: Setting, config: Path | None = None, processes: int = 1) -> RunFolder:
    """A run in which a stage was done without an attack."""
    run = prepared(stage, setting, setting.folder / "undisturbed")
    let_end(stage, setting, run, config, processes)
    return run


def let_end(stage: str, setting: Setting, run: RunFolder, config: Path | None = None, processes: int = 1) -> None:
    """Begin a stage, or go on with it, to the end; it has to end well, or nothing here means anything.

    Raises:
        AttackError: where it does not.
    """
    ended = run_to_end(*words_of(stage, setting, run, config), processes=processes)
    if ended.code:
        raise AttackError(f"{stage} did not end: code {ended.code}, {ended.said[-500:]}")


def prepared(stage: str, setting: Setting, path: Path) -> RunFolder:
    """A run folder with what a stage needs, and nothing of its own."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for part in NEEDS[stage]:
        shutil.copytree(setting.done.path / part, path / part)
    shutil.copy(setting.done.config_file, path / "config.json")
    return RunFolder(path)


def make_setting(folder: Path) -> Setting:
    """Images, and a run of which every stage is done, by recipes that nobody disturbs."""
    write_images(folder / "images")
    config = write_configuration(folder / "config.json", folder / "images")
    setting = Setting(folder, config, RunFolder(folder / "done"), random.Random(0))
    for stage in ("autoencoder", "codes", "prior.top", "prior.bottom", "samples"):
        let_end(stage, setting, setting.done)
    return setting


# --- what must hold ---------------------------------------------------------------------------------------------------


def faults_of(run: RunFolder) -> list[str]:
    """What is wrong with the files that carry their final names."""
    found = []
    for path in sorted(run.path.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(run.path).parts):
            continue
        try:
            _read(path)
        except HVQError as error:
            found.append(str(error))
    return found


def _read(path: Path) -> None:
    if path.suffix == ".safetensors":
        read_tensors(path, "file")
    elif path.name == "state.json":
        read_checkpoint(path.parent)
    elif path.suffix == ".json":
        read_json(path, "file")
    elif path.suffix == ".jsonl":
        read_json_lines(path)


def newest(run: RunFolder, stage: str) -> int:
    """The step of the newest checkpoint; that of the end where the stage is done."""
    if (run.path / LEAVES[stage]).exists():
        return sys.maxsize
    steps = CheckpointFolders(run.checkpoint(stage)).steps()
    return steps[-1] if steps else 0


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    """Lines of numbers without times."""
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in run.lines()]


def difference(one: RunFolder, other: RunFolder, part: str) -> str | None:
    """How what a stage left differs between two runs; None where it is the same to the last bit."""
    tensors = [
        {
            f"{path.relative_to(run.path)}/{name}": tensor
            for path in sorted((run.path / part).rglob("*.safetensors"))
            for name, tensor in read_tensors(path, "tensors")[0].items()
        }
        for run in (one, other)
    ]
    if not tensors[0]:
        return f"{part} holds no tensors"
    if tensors[0].keys() != tensors[1].keys():
        return f"{part}: {sorted(tensors[0].keys() ^ tensors[1].keys())[:3]}"
    unequal = [name for name, tensor in tensors[0].items() if not torch.equal(tensor, tensors[1][name])]
    if unequal:
        return f"{part}: {unequal[:3]}"
    return None if rows_of(one) == rows_of(other) or part in ("codes", "samples") else f"{part}: lines of numbers"
