"""TensorBoard, W&B and other trackers, through accelerate: one run of a tracker for one training.

A training that is resumed goes on in the run that it had, on the same axis of steps; one that is started anew has a run
of its own. The main process alone writes.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import is_tensorboard_available, is_wandb_available
from PIL import Image
from torch import Tensor

from hvq.errors import CheckpointError, ConfigurationError
from hvq.files import read_json, write_json, writing

PROJECT = "hvq"
"""Where W&B and its kind file their runs, unless WANDB_PROJECT says otherwise."""


def trackers_to_use(chosen: Sequence[str] | None) -> list[str] | None:
    """What `Accelerator(log_with=...)` takes for the field `trackers`.

    Args:
        chosen: names; None for TensorBoard where it is installed.

    Raises:
        ConfigurationError: where one that was named is not installed.
    """
    installed = {"tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if chosen is None:
        chosen = ["tensorboard"] if installed["tensorboard"] else []
    if missing := [name for name in chosen if not installed[name]]:
        raise ConfigurationError(
            f"trackers names {' and '.join(missing)}, not installed here; pip install {' '.join(missing)}, or leave "
            f"{'them' if len(missing) > 1 else 'it'} out of trackers"
        )
    # None rather than an empty list, at which accelerate warns.
    return list(chosen) or None


class StageTrackers:
    """The trackers of one training.

    What the caller has made is left as it is: trackers that the accelerator has begun already, and those that it was
    given as objects.

    Args:
        accelerator: knows which trackers there are to be (`log_with`).
        folder: of the run.
        stage: "autoencoder", "prior.<level>" or "samples"; names of numbers and pictures begin with it.
        start_step: where a resumed training goes on.
        settings: nested plain values, kept as hyper-parameters.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        stage: str,
        *,
        start_step: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._accelerator, self._folder, self._stage = accelerator, folder, stage
        self._own: list[GeneralTracker] = []
        if accelerator.is_main_process:
            try:
                self._begin(start_step, settings or {})
            except BaseException:
                # One that did start is not to be taken for the caller's by the next training.
                self.close()
                raise

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Give numbers to all of them."""
        with self._writing():
            self._accelerator.log({f"{self._stage}/{name}": value for name, value in numbers.items()}, step=step)

    @property
    def takes_pictures(self) -> bool:
        """Whether one of them does, in this process."""
        return any(hasattr(tracker, "log_images") for tracker in self._accelerator.trackers)

    def show(self, pictures: Mapping[str, Tensor], step: int) -> None:
        """Give pictures, uint8 `[H, W, 3]`, to those that take some."""
        rows = {f"{self._stage}/{name}": picture.cpu().numpy()[None] for name, picture in pictures.items()}
        with self._writing():
            for tracker in self._accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images(rows, step=step, **layout)

    def close(self) -> None:
        """End the runs that were begun here."""
        with self._writing():
            for tracker in self._own:
                self._accelerator.trackers.remove(tracker)
                tracker.finish()
        self._own = []

    def _begin(self, start_step: int, settings: Mapping[str, Any]) -> None:
        begun = self._accelerator.trackers
        names = {tracker.name for tracker in begun}
        for kind in self._accelerator.log_with:
            if isinstance(kind, GeneralTracker):
                if kind not in begun:
                    kind.start()
                    begun.append(kind)
                    self._describe(kind, settings)
            elif str(kind) not in names:
                tracker = self._started(str(kind), start_step)
                begun.append(tracker)
                self._own.append(tracker)
                # TensorBoard would have them once more as those of another run.
                if str(kind) != "tensorboard" or start_step == 0:
                    self._describe(tracker, settings)

    def _started(self, kind: str, start_step: int) -> GeneralTracker:
        made = LOGGER_TYPE_TO_CLASS[kind]
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        where = (self._stage, self._accelerator.logging_dir) if made.requires_logging_directory else (project,)
        details = self._details(kind, start_step)
        tracker = made(*where, **details)
        with self._writing(), _in_one_sentence(kind):
            tracker.start()
            if kind == "wandb":
                write_json(self._wandb_note, {"id": details["id"]})
        return tracker

    def _details(self, kind: str, start_step: int) -> dict[str, Any]:
        if kind == "wandb":
            return self._wandb_run(start_step)
        # What was written after the checkpoint is not shown, since it is written anew.
        return {"purge_step": start_step + bool(start_step)} if kind == "tensorboard" else {}

    def _describe(self, tracker: GeneralTracker, settings: Mapping[str, Any]) -> None:
        if settings:
            with self._writing():
                tracker.store_init_configuration(flat(settings))

    def _wandb_run(self, start_step: int) -> dict[str, Any]:
        """What W&B is told of its run: which one it is, and what it belongs to."""
        note = self._wandb_note
        with writing(note.parent):
            note.parent.mkdir(parents=True, exist_ok=True)
        known = read_json(note, "note of a W&B run").get("id") if start_step and note.exists() else None
        if known is not None and not isinstance(known, str):
            raise CheckpointError(
                f"{note} must hold a text under id, and holds {known}; delete it for a new run of W&B"
            )
        name = self._folder.resolve().name
        return {
            "id": known or secrets.token_hex(8),
            "resume": "allow",
            "name": f"{name}/{self._stage}",
            "group": name,
            "job_type": self._stage,
            "dir": str(self._folder),
        }

    @property
    def _wandb_note(self) -> Path:
        """Which run of W&B this training has, for when it is resumed."""
        return self._folder / "wandb" / f"{self._stage}.json"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk is a sentence that names the trackers' folder."""
        with writing(self._folder / "tensorboard"):
            yield


@contextmanager
def _in_one_sentence(kind: str) -> Iterator[None]:
    """W&B fails in many ways where it is not logged in or finds no network."""
    try:
        yield
    except Exception as error:
        if kind != "wandb":
            raise
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigurationError(
            f"W&B did not start: {said}; log in (wandb login), set WANDB_MODE=offline, or leave wandb out of trackers"
        ) from error


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested values by dotted path, as trackers want hyper-parameters: numbers, texts and None; lists as JSON.

    >>> flat({"seed": 3, "data": {"size": [5, 7], "workers": 0}})
    {'seed': 3, 'data.size': '[5, 7]', 'data.workers': 0}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = json.dumps(value) if isinstance(value, list | tuple) else value
    return found


def show_file(accelerator: Accelerator, folder: Path, stage: str, picture: Path) -> None:
    """Give a picture that a stage left in the run folder to the trackers; all processes may call it.

    Args:
        accelerator: of the run.
        folder: of the run.
        stage: whose picture it is.
        picture: the file.
    """
    if not accelerator.is_main_process or not accelerator.log_with:
        return
    trackers = StageTrackers(accelerator, folder, stage)
    if trackers.takes_pictures:
        trackers.show({picture.stem: torch.from_numpy(np.asarray(_on_white(picture)).copy())}, 0)
    trackers.close()


def _on_white(picture: Path) -> Image.Image:
    """A picture in RGB; a ground that was transparent is white."""
    with Image.open(picture) as opened:
        shown = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
