"""Seconds that the parts of a run take on this machine, by taking a few steps of each on data that are made up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from hvq.autoencoders import Autoencoder, AutoencoderLoss, build_autoencoder, weights_channels_last
from hvq.choosing.costs import Costs
from hvq.config import RunConfig
from hvq.data import ImageSource, spread_rows
from hvq.distributed import Reduction, current_reduction
from hvq.evaluation.classification import SMALLEST_SIDE, fit_classifier
from hvq.priors import Condition, Prior, build_prior, sample_hierarchy
from hvq.training.optimization import Losses, Optimization

_ROUNDS = 4
_PICTURES_READ = 8
# Steps of the classifier that is timed, and its batch beside that of the evaluation.
_CLASSIFIER_STEPS, _CLASSIFIER_BATCH, _EVALUATION_BATCH = 10, 16, 64
_CLASSES = 4
# Of grids of so many rows only the first ones are drawn.
_TALL_GRID = 8


Call = Callable[[], Any]


def measure_costs(config: RunConfig, source: ImageSource, *, accelerator: Accelerator, most_seconds: float) -> Costs:
    """What the parts of a run cost; all processes measure together, and take the seconds of the first.

    Args:
        config: of the run; its steps are those of its models and batch sizes, and how many it has does not matter.
        source: training images, a few of which are read, and whose classes priors are told.
        accelerator: of the processes.
        most_seconds: for all parts together, once each was called; one that takes longer is timed by its first call.

    Raises:
        ConfigurationError: where a level has no codes, or batches cannot be divided evenly.
    """
    model = weights_channels_last(build_autoencoder(config.autoencoder))
    model.require_codes("sampling")
    rows = spread_rows(len(source), _PICTURES_READ)
    images = _images(config, config.chunk_size, accelerator.device)
    calls: dict[str, Call] = {
        "reading": lambda: source.fetch(rows),
        "autoencoder": _autoencoder_step(config, model, accelerator),
        "encoding": lambda: _in_use(model, lambda: model.encode(images)),
        "restoring": lambda: _in_use(model, lambda: model(images)),
    }
    priors = _priors(config, model, len(source.classes))
    for name, prior in priors.items():
        calls[f"step {name}"], calls[f"look {name}"] = _prior_step(config, name, prior, model, accelerator)
    calls["drawing"], share = _drawing(config, model, priors)
    if min(config.data.size) >= SMALLEST_SIDE:
        calls["classifier"] = _classifier(config, accelerator.device)
    seconds = _Watch(current_reduction(), accelerator.device).medians(calls, most_seconds)
    accelerator.free_memory()
    restoring = seconds["restoring"] / config.chunk_size
    classifier_batches = _CLASSIFIER_STEPS * _CLASSIFIER_BATCH / _EVALUATION_BATCH
    return Costs(
        reading=seconds["reading"] / len(rows),
        autoencoder_step=seconds["autoencoder"],
        encoding=seconds["encoding"] / config.chunk_size,
        restoring=restoring,
        prior_steps={name: seconds[f"step {name}"] for name in priors},
        looks={name: seconds[f"look {name}"] for name in priors},
        drawing=seconds["drawing"] / share + restoring * config.chunk_size,
        classifier_step=seconds.get("classifier", 0.0) / classifier_batches,
    )


class _Watch:
    """Seconds of calls, those of the first process on all of them."""

    def __init__(self, reduction: Reduction, device: torch.device) -> None:
        self._reduction, self._device = reduction, device

    def once(self, call: Call) -> float:
        """Of a single call."""
        started = time.perf_counter()
        call()
        if self._device.type != "cpu":
            torch.accelerator.synchronize()
        seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64, device=self._device)
        return float(self._reduction.first(seconds))

    def medians(self, calls: Mapping[str, Call], most_seconds: float) -> dict[str, float]:
        """Of each call, over rounds, so that what else a machine does for a moment falls on all of them alike.

        The first round, in which much is compiled and allocated, counts where there is no time for another.
        """
        first = {name: self.once(call) for name, call in calls.items()}
        rounds: list[dict[str, float]] = []
        while len(rounds) < _ROUNDS and _total([*rounds, first]) < most_seconds:
            rounds.append({name: self.once(call) for name, call in calls.items()})
        return {name: statistics.median(one[name] for one in rounds or [first]) for name in calls}


def _total(rounds: Sequence[Mapping[str, float]]) -> float:
    return sum(sum(seconds.values()) for seconds in rounds)


@torch.no_grad()
def _in_use(model: nn.Module, call: Call) -> Any:
    model.eval()
    return call()


def _images(config: RunConfig, number: int, device: torch.device) -> Tensor:
    """Smooth, as pictures are, in [-1, 1]: codes of noise would be of another kind."""
    coarse = torch.rand(number, config.autoencoder.channels, 4, 4) * 2 - 1
    images = functional.interpolate(coarse, tuple(config.data.size), mode="bicubic").clamp(-1, 1)
    return images.contiguous(memory_format=torch.channels_last).to(device)


def _autoencoder_step(config: RunConfig, model: Autoencoder, accelerator: Accelerator) -> Call:
    training, processes = config.autoencoder_training, current_reduction().size
    optimization = Optimization(model, training, accelerator, seed=config.seed, quantizers=model.quantizers)
    loss = AutoencoderLoss()
    images = _images(config, max(1, training.batch_size // processes), accelerator.device)

    def losses(images: Tensor) -> Losses:
        result = optimization.wrapped(images, None)
        optimization.codebooks.add(result.levels)
        return loss(result, images)

    def step() -> Any:
        model.train()
        return optimization.step(images.chunk(training.micro_batches), losses)

    return step


def _priors(config: RunConfig, model: Autoencoder, classes: int) -> dict[str, Prior]:
    """One for each level, with fresh weights."""
    sizes = {name: quantizer.codebook_size for name, quantizer in model.quantizers.items()}
    several = {name: quantizer.codes_per_position for name, quantizer in model.quantizers.items()}
    return {
        name: build_prior(
            config.prior(name).model,
            codebook_size=sizes[name],
            coarser={coarser: sizes[coarser] for coarser in model.level_names[:i]},
            num_classes=classes,
            codes_per_position=several[name],
            coarser_codes_per_position=several,
        )
        for i, name in enumerate(model.level_names)
    }


def _codes(config: RunConfig, model: Autoencoder, rows: int, device: torch.device) -> dict[str, Tensor]:
    return {
        name: torch.randint(
            quantizer.codebook_size,
            (rows, *grid, *((quantizer.codes_per_position,) if quantizer.codes_per_position > 1 else ())),
            device=device,
        )
        for (name, grid), quantizer in zip(
            model.grids(config.data.size).items(), model.quantizers.values(), strict=True
        )
    }


def _prior_step(
    config: RunConfig, name: str, prior: Prior, model: Autoencoder, accelerator: Accelerator
) -> tuple[Call, Call]:
    """A step of training, and a forward of a chunk."""
    training, processes = config.prior(name).training, current_reduction().size
    optimization = Optimization(prior, training, accelerator, seed=config.seed)
    codes = _codes(config, model, max(1, training.batch_size // processes), accelerator.device)
    chunk = _codes(config, model, config.chunk_size, accelerator.device)

    def condition(codes: dict[str, Tensor]) -> Condition:
        return Condition(codes={coarser: codes[coarser] for coarser in prior.coarser})

    def losses(rows: Tensor) -> Losses:
        part = {level: values[rows] for level, values in codes.items()}
        logits = optimization.wrapped(part[name], condition(part)).float()
        return functional.cross_entropy(logits.flatten(0, -2), part[name].flatten()), {}

    def step() -> Any:
        prior.train()
        rows = torch.arange(len(codes[name]), device=accelerator.device)
        return optimization.step(rows.chunk(training.micro_batches), losses)

    return step, lambda: _in_use(prior, lambda: prior(chunk[name], condition(chunk)))


def _drawing(config: RunConfig, model: Autoencoder, priors: dict[str, Prior]) -> tuple[Call, float]:
    """Drawing the first rows of all grids of one chunk, and what share of the grids they are."""
    grids = model.grids(config.data.size)
    height = grids[model.level_names[0]][0]
    rows = 1 if height >= _TALL_GRID else height
    cut = {name: (max(1, rows * grid[0] // height), *grid[1:]) for name, grid in grids.items()}

    def draw() -> Any:
        for prior in priors.values():
            prior.eval()
        return sample_hierarchy(priors, cut, samples=range(config.chunk_size), chunk_size=config.chunk_size)

    return draw, rows / height


def _classifier(config: RunConfig, device: torch.device) -> Call:
    """A short training of the evaluation's classifier."""
    shape = (_CLASSIFIER_BATCH, config.autoencoder.channels, *config.data.size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    return lambda: fit_classifier(
        images,
        torch.arange(_CLASSIFIER_BATCH) % _CLASSES,
        num_classes=_CLASSES,
        steps=_CLASSIFIER_STEPS,
        batch_size=_CLASSIFIER_BATCH,
    )
