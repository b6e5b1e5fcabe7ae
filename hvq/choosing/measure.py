"""Seconds that the parts of a run take on this machine, by taking a few steps of each on data that are made up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from hvq.autoencoders import Autoencoder, AutoencoderLoss, build_autoencoder, weights_channels_last
from hvq.choosing.costs import Costs
from hvq.config import RunConfig
from hvq.data import ImageSource, spread_rows
from hvq.distributed import Reduction, current_reduction
from hvq.evaluation.classification import SMALLEST_SIDE, fit_classifier
from hvq.priors import Condition, Prior, build_prior, sample_hierarchy
from hvq.training.optimization import Losses, Optimization

_TIMED_STEPS = 3
_PICTURES_READ = 8
# Steps of the classifier that is timed, and its batch beside that of the evaluation.
_CLASSIFIER_STEPS, _CLASSIFIER_BATCH, _EVALUATION_BATCH = 10, 16, 64
_CLASSES = 4


def measure_costs(
    config: RunConfig, source: ImageSource, *, classes: int, accelerator: Accelerator, most_seconds: float
) -> Costs:
    """What the parts of a run cost; all processes measure together, and take the seconds of the first.

    Args:
        config: of the run; its steps are those of its models and batch sizes, and how many it has does not matter.
        source: training images, a few of which are read.
        classes: that priors are told.
        accelerator: of the processes.
        most_seconds: after so long, a part is timed once rather than a few times.

    Raises:
        ConfigurationError: where a level has no codes, or batches cannot be divided evenly.
    """
    watch = _Watch(current_reduction(), accelerator.device, most_seconds)
    rows = spread_rows(len(source), _PICTURES_READ)
    reading = watch.once(lambda: source.fetch(rows)) / len(rows)
    model = weights_channels_last(build_autoencoder(config.autoencoder))
    model.require_codes("sampling")
    autoencoder_step = watch.median(_autoencoder_step(config, model, accelerator))
    accelerator.free_memory()
    images = _images(config, config.chunk_size, accelerator.device)
    model.eval()
    encoding = watch.second(lambda: _without_gradients(lambda: model.encode(images))) / config.chunk_size
    restoring = watch.second(lambda: _without_gradients(lambda: model(images))) / config.chunk_size
    priors = _priors(config, model, classes)
    steps: dict[str, float] = {}
    looks: dict[str, float] = {}
    for name, prior in priors.items():
        step, look = _prior_step(config, name, prior, model, accelerator)
        steps[name] = watch.median(step)
        accelerator.free_memory()
        looks[name] = watch.second(look)
    return Costs(
        reading=reading,
        autoencoder_step=autoencoder_step,
        encoding=encoding,
        restoring=restoring,
        prior_steps=steps,
        looks=looks,
        drawing=_drawing(config, model, priors, watch) + restoring * config.chunk_size,
        classifier_step=_classifier_step(config, accelerator.device, watch),
    )


class _Watch:
    """Seconds of calls, those of the first process on all of them."""

    def __init__(self, reduction: Reduction, device: torch.device, most_seconds: float) -> None:
        self._reduction, self._device, self._most_seconds = reduction, device, most_seconds

    def once(self, call: Callable[[], Any]) -> float:
        """Of a single call."""
        started = time.perf_counter()
        call()
        if self._device.type != "cpu":
            torch.accelerator.synchronize()
        seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64, device=self._device)
        return float(self._reduction.first(seconds))

    def second(self, call: Callable[[], Any]) -> float:
        """Of a call after a first one, which compiles and allocates."""
        self.once(call)
        return self.once(call)

    def median(self, call: Callable[[], Any]) -> float:
        """Of a few calls after a first one, which compiles and allocates; of the first, where that takes too long."""
        first = self.once(call)
        return first if first > self._most_seconds else statistics.median(self.once(call) for _ in range(_TIMED_STEPS))


@torch.no_grad()
def _without_gradients(call: Callable[[], Any]) -> Any:
    return call()


def _images(config: RunConfig, number: int, device: torch.device) -> Tensor:
    """Smooth, as pictures are, in [-1, 1]: codes of noise would be of another kind."""
    coarse = torch.rand(number, config.autoencoder.channels, 4, 4) * 2 - 1
    images = functional.interpolate(coarse, tuple(config.data.size), mode="bicubic").clamp(-1, 1)
    return images.contiguous(memory_format=torch.channels_last).to(device)


def _shares(batch: Tensor, micro_batches: int) -> Sequence[Tensor]:
    return batch.chunk(micro_batches)


def _autoencoder_step(config: RunConfig, model: Autoencoder, accelerator: Accelerator) -> Callable[[], Any]:
    training, processes = config.autoencoder_training, current_reduction().size
    optimization = Optimization(model.train(), training, accelerator, seed=config.seed, quantizers=model.quantizers)
    loss = AutoencoderLoss()
    images = _images(config, max(1, training.batch_size // processes), accelerator.device)

    def losses(images: Tensor) -> Losses:
        result = optimization.wrapped(images, None)
        optimization.codebooks.add(result.levels)
        return loss(result, images)

    return lambda: optimization.step(_shares(images, training.micro_batches), losses)


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
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A step of training, and a forward of a chunk."""
    training, processes = config.prior(name).training, current_reduction().size
    optimization = Optimization(prior.train(), training, accelerator, seed=config.seed)
    codes = _codes(config, model, max(1, training.batch_size // processes), accelerator.device)
    chunk = _codes(config, model, config.chunk_size, accelerator.device)

    def condition(codes: dict[str, Tensor]) -> Condition:
        return Condition(codes={coarser: codes[coarser] for coarser in prior.coarser})

    def losses(rows: Tensor) -> Losses:
        part = {level: values[rows] for level, values in codes.items()}
        logits = optimization.wrapped(part[name], condition(part)).float()
        return functional.cross_entropy(logits.flatten(0, -2), part[name].flatten()), {}

    rows = _shares(torch.arange(len(codes[name]), device=accelerator.device), training.micro_batches)
    return (
        lambda: optimization.step(rows, losses),
        lambda: _without_gradients(lambda: prior(chunk[name], condition(chunk))),
    )


def _drawing(config: RunConfig, model: Autoencoder, priors: dict[str, Prior], watch: _Watch) -> float:
    """Of one chunk of codes of all levels, reckoned from the first rows of their grids."""
    grids = model.grids(config.data.size)
    height = grids[model.level_names[0]][0]
    top_rows = 1 if height >= 8 else height
    cut = {name: (max(1, top_rows * grid[0] // height), *grid[1:]) for name, grid in grids.items()}
    for prior in priors.values():
        prior.eval()
    samples = range(config.chunk_size)

    def draw() -> Any:
        return sample_hierarchy(priors, cut, samples=samples, chunk_size=config.chunk_size)

    return watch.second(draw) * height / top_rows


def _classifier_step(config: RunConfig, device: torch.device, watch: _Watch) -> float:
    if min(config.data.size) < SMALLEST_SIDE:
        return 0.0
    shape = (_CLASSIFIER_BATCH, config.autoencoder.channels, *config.data.size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels = torch.arange(_CLASSIFIER_BATCH) % _CLASSES

    def fit() -> Any:
        return fit_classifier(
            images, labels, num_classes=_CLASSES, steps=_CLASSIFIER_STEPS, batch_size=_CLASSIFIER_BATCH
        )

    return watch.once(fit) / _CLASSIFIER_STEPS * _EVALUATION_BATCH / _CLASSIFIER_BATCH
