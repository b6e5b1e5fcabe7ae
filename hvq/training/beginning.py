"""How a training begins: fresh, from other weights (fine-tuning, another codebook size), or where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hvq.errors import CheckpointError
from hvq.files import read_tensors
from hvq.priors.vector_reader import VectorReader
from hvq.quantizers import Quantizer
from hvq.storage.models import WEIGHTS
from hvq.training.checkpoint_files import STATE_FILE, CheckpointFolders, read_checkpoint
from hvq.training.checkpoints import TrainingCheckpoint


@dataclass(frozen=True)
class Beginning:
    """What a person asked for.

    Attributes:
        resume: go on from the newest training checkpoint, if there is one.
        resume_at: go on from the training checkpoint of this step.
        init_from: folder of other weights to begin from, where training does not go on from a checkpoint.
    """

    resume: bool = False
    resume_at: int | None = None
    init_from: Path | None = None

    def fill(self, model: nn.Module, checkpoints: Path, inside_run: Path) -> str | None:
        """Take other weights, where they are wanted; returns what a person should know of it.

        Args:
            model: freshly built.
            checkpoints: folder of the stage's checkpoints; where training goes on from them, nothing else is read.
            inside_run: where the model lies in a run folder.
        """
        goes_on = self.resume_at is not None or (self.resume and CheckpointFolders(checkpoints).steps())
        return None if goes_on or self.init_from is None else begin_from(model, self.init_from, inside_run)

    def restore(self, checkpoint: TrainingCheckpoint) -> bool:
        """Go on from a checkpoint, where that is wanted and there is one; returns whether it does."""
        return (self.resume or self.resume_at is not None) and checkpoint.load_if_present(self.resume_at)


def begin_from(model: nn.Module, folder: Path, inside_run: Path) -> str:
    """Fill a model with what fits of other weights; what has no counterpart, or another shape, stays fresh.

    A quantizer is taken whole or not at all: with another codebook size its codebook starts from k-means again. So is
    what reads the vectors of a prior, for its weights are of vectors standardized by its own mean and deviation.

    Args:
        model: freshly built.
        folder: a model's folder, a run folder, a training checkpoint, or the folder of a stage's checkpoints, of which
            the newest is taken. Of a training checkpoint it is the averaged weights, where there are any.
        inside_run: where the model lies in a run folder, such as `autoencoder`.

    Returns:
        A sentence that says what was taken, and what was not.

    Raises:
        CheckpointError: where there are no weights, they are damaged, or none of them fits.
    """
    weights, where = _read_weights(folder, inside_run)
    state = model.state_dict()
    fits = {name for name, tensor in state.items() if name in weights and weights[name].shape == tensor.shape}
    for prefix in _taken_whole(model):
        own = {name for name in state if name.startswith(prefix)}
        if not own <= fits or any(name.startswith(prefix) and name not in own for name in weights):
            fits -= own
    if not fits:
        raise CheckpointError(
            f"no tensor of {where} has the name and shape of one of this model's; --init-from takes a model of the "
            "same kind"
        )
    with torch.no_grad():
        for name in fits:
            state[name].copy_(weights[name])
    fresh = sorted(state.keys() - fits)
    parts = sorted({".".join(name.split(".")[:3]) for name in fresh})
    rest = f"; fresh are {', '.join(parts)}" if parts else ""
    return f"begun from {where}: {len(fits)} of {len(state)} tensors{rest}"


def _taken_whole(model: nn.Module) -> list[str]:
    """Prefixes of the names of the tensors of each quantizer and reader; one inside another belongs to it."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Quantizer | VectorReader) and not any(name.startswith(outer) for outer in found):
            found.append(f"{name}.")
    return found


def _read_weights(folder: Path, inside_run: Path) -> tuple[Mapping[str, Tensor], Path]:
    for path in (folder, folder / inside_run):
        newest = [CheckpointFolders(path).of_step(step) for step in CheckpointFolders(path).steps()[-1:]]
        for place in (path, *newest):
            if (place / STATE_FILE).exists():
                _, parts = read_checkpoint(place)
                return {**parts["model"], **parts["average"]}, place
            if (place / WEIGHTS).exists():
                return read_tensors(place / WEIGHTS, "weights")[0], place
    raise CheckpointError(
        f"--init-from takes the folder of a model, a run or a training checkpoint; {folder} holds neither {WEIGHTS} "
        f"nor {inside_run / WEIGHTS}"
    )
