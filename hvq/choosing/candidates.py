"""Runs that a folder of pictures allows, from small images to large ones, before their lengths are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvq.choosing.costs import Machine
from hvq.choosing.survey import FolderSurvey
from hvq.config_loading import run_config
from hvq.level_names import default_level_names

# Each a multiple of its strides; beyond the last a few minutes lead nowhere.
SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Pictures that have so many pixels are not made smaller, for there is nothing to see, and little time to be saved: with
# fewer pixels for each code, there are as many codes.
_LEAST_SIZES = (32, 16)
LEAST_CODES, MOST_CODES = 32, 512
_LATENTS_PER_CODE = 64
# Held out by hash: a share between these, for some images at least, and no more than are worth a look.
_LEAST_SHARE, _MOST_SHARE = 0.05, 0.1
_LEAST_HELD_OUT, _MOST_HELD_OUT = 64, 1_000
_FEW_IMAGES = 5_000
# Grids of so many codes have attention that reaches back so far.
_LONG_GRID, _WINDOW = 4_096, 1_024
_MANY_CODES = 64
_LEAST_PER_CLASS = 5


@dataclass(frozen=True, order=True)
class Candidate:
    """A size of images, and how large the models are.

    Attributes:
        size: height and width in pixels.
        wide: with the largest models.
    """

    size: int
    wide: bool = False

    @property
    def ratios(self) -> tuple[int, ...]:
        """Of the levels, coarse to fine; one level where there is no room for a second.

        >>> Candidate(64).ratios, Candidate(16).ratios, Candidate(12).ratios
        ((2, 4), (2, 2), (2,))
        """
        return (2,) if self.size < 16 else (2, 2) if self.size < 32 else (2, 4)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Coarse to fine."""
        return tuple(default_level_names(len(self.ratios)))

    def grid(self, level: str) -> int:
        """Codes of a level along one side.

        >>> Candidate(64).grid("top"), Candidate(64).grid("bottom")
        (8, 16)
        """
        return self.size // math.prod(self.ratios[self.level_names.index(level) :])

    @property
    def width(self) -> int:
        """Channels of the autoencoder's features."""
        return 128 if self.wide or self.size >= 128 else 96 if self.size >= 48 else 64

    @property
    def weight(self) -> float:
        """How dear a step is beside those of others, roughly."""
        return self.size**2 * (self.width / 64) * (2.5 if self.wide else 1.0)

    @property
    def enough_steps(self) -> tuple[int, int]:
        """Steps of the autoencoder and of each prior below which a smaller candidate is the better choice."""
        if self.wide:
            return 3_000, 1_500
        return (500, 250) if self.size < 64 else (1_000, 500)


def candidates(survey: FolderSurvey) -> tuple[Candidate, ...]:
    """Sizes that pictures need not be enlarged for, and the largest of them once more with larger models."""
    least = next((size for size in _LEAST_SIZES if size <= survey.usual_side), SIZES[0])
    sizes = [size for size in SIZES if least <= size <= survey.usual_side] or [SIZES[0]]
    return (*map(Candidate, sizes), Candidate(sizes[-1], wide=True))


def outline(path: str, survey: FolderSurvey, machine: Machine, candidate: Candidate) -> dict[str, Any]:
    """Fields of a `RunConfig` that do not depend on seconds.

    Args:
        path: of the folder.
        survey: of it.
        machine: that runs it.
        candidate: the size of images and models.
    """
    batch = batch_size(survey, machine, candidate)
    return {
        "chunk_size": 64 if candidate.size <= 32 or (machine.accelerated and candidate.size <= 128) else 16,
        "data": _data(path, survey, machine, candidate),
        "autoencoder": _autoencoder(survey, candidate),
        "autoencoder_training": {"batch_size": batch, "final_learning_rate": 0.02},
    }


def with_priors(
    values: Mapping[str, Any],
    survey: FolderSurvey,
    machine: Machine,
    candidate: Candidate,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """The outline, with a prior for each level that it has once overrides are applied."""
    config = run_config(values, overrides, say=_silent)
    batch, stride = batch_size(survey, machine, candidate), 1
    priors: dict[str, Any] = {}
    for name, level in reversed(config.autoencoder.levels.items()):
        stride *= level.ratio
        codes = math.prod(math.ceil(side / stride) for side in config.data.size)
        # On a CPU a step is to be short, so that there are many of them.
        halved = not machine.accelerated and codes >= _MANY_CODES and batch > machine.processes
        training = {"batch_size": batch // 2 if halved else batch}
        priors[name] = {"model": _prior(survey, candidate, codes), "training": training}
    return {**values, "priors": dict(reversed(priors.items()))}


def batch_size(survey: FolderSurvey, machine: Machine, candidate: Candidate) -> int:
    """Images of a step, over all processes: a power of two for each."""
    wanted = 32 if not machine.accelerated or candidate.size > 128 else 64 if candidate.size > 64 else 128
    share = max(1, min(wanted, survey.images // 4) // machine.processes)
    return machine.processes * 2 ** int(math.log2(share))


def codebook_size(survey: FolderSurvey, candidate: Candidate, level: str) -> int:
    """K: so few that each code is met often enough, between 32 and 512."""
    latents = survey.images * candidate.grid(level) ** 2
    wanted = max(1, latents // _LATENTS_PER_CODE)
    return max(LEAST_CODES, min(MOST_CODES, 2 ** int(math.log2(wanted))))


def tells_classes(survey: FolderSurvey) -> bool:
    """Whether subfolders are taken for classes: two at least, with some pictures each."""
    return survey.classes >= 2 and survey.images >= _LEAST_PER_CLASS * survey.classes


def flips(survey: FolderSurvey) -> bool:
    """Whether pictures are mirrored: colour photographs, of which nothing is written, as a rule."""
    return survey.photographs and survey.colour


def _data(path: str, survey: FolderSurvey, machine: Machine, candidate: Candidate) -> dict[str, Any]:
    return {
        "kind": "folder",
        "path": path,
        "size": [candidate.size, candidate.size],
        "channels": survey.channels,
        "crop": "random" if crops(survey) else "center",
        "validation_share": _held_out_share(survey),
        "labelled": tells_classes(survey),
        "augmentation": {"flip": flips(survey)},
        # Beside a GPU the processor is free to read pictures; where it trains, readers would only be in its way.
        "workers": max(0, min(8, machine.cores - 1)) if machine.accelerated else 0,
    }


def _held_out_share(survey: FolderSurvey) -> float:
    share = max(_LEAST_SHARE, min(_MOST_SHARE, _LEAST_HELD_OUT / survey.images))
    return round(min(share, _MOST_HELD_OUT / survey.images), 6)


def crops(survey: FolderSurvey) -> bool:
    """Whether crops lie anywhere: in photographs that are not square."""
    return survey.photographs and not survey.square


def _autoencoder(survey: FolderSurvey, candidate: Candidate) -> dict[str, Any]:
    sizes = {
        "width": candidate.width,
        "residual_blocks": 1 if candidate.width == 64 else 2,
        "residual_width": 32,
    }
    levels = {
        name: {
            **sizes,
            "ratio": ratio,
            "codebook_size": codebook_size(survey, candidate, name),
            "code_dimension": 32 if candidate.width == 64 else 64,
        }
        for name, ratio in zip(candidate.level_names, candidate.ratios, strict=True)
    }
    return {
        "channels": survey.channels,
        "levels": levels,
        "decoder": sizes,
        "level_dropout": 0.1 if len(levels) > 1 else 0.0,
    }


def _silent(note: str) -> None:
    """Said once, when all is chosen."""


def _prior(survey: FolderSurvey, candidate: Candidate, codes: int) -> dict[str, Any]:
    return {
        "kind": "transformer",
        **({"width": 256, "layers": 6} if candidate.wide else {"width": 128, "layers": 4}),
        "heads": 4,
        "dropout": 0.2 if survey.images < _FEW_IMAGES else 0.1,
        "window": _WINDOW if codes >= _LONG_GRID else None,
    }
