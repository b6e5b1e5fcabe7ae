"""Stage 1: the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    FeatureDistance,
    build_autoencoder,
    build_loss,
    check_autoencoder,
    weights_channels_last,
)
from hvq.config import RunConfig
from hvq.data import Batch, ImageSource, Sources
from hvq.data.pixels import kept_to_model
from hvq.data.views import noun
from hvq.errors import ConfigurationError, HVQError
from hvq.randomness import uniform
from hvq.storage import RunFolder, load_autoencoder, save_autoencoder
from hvq.storage.models import AutoencoderDescription
from hvq.training.adversary import Adversary
from hvq.training.beginning import Beginning
from hvq.training.checkpoints import Kept, TrainingCheckpoint
from hvq.training.code_window import CodeWindow
from hvq.training.continuous_start import ContinuousStart
from hvq.training.image_looks import ImageLooks
from hvq.training.log import TrainingLog
from hvq.training.loop import Health, train
from hvq.training.optimization import Losses, Optimization
from hvq.training.processes import make_accelerator
from hvq.training.seeds import seeded
from hvq.training.sources import build_sources_in_turn
from hvq.training.stage import open_stage, stream_of, told_by_the_first
from hvq.training.summary import autoencoder_summary, outcome

STAGE = "autoencoder"


class LoadDistance(Protocol):
    """Finds the network of a perceptual term."""

    def __call__(self, extractor: str, *, channels: int, size: Sequence[int]) -> FeatureDistance:
        """The distance in its features; raises an HVQError where it cannot be had, or does not suit such images."""
        ...


def fit_autoencoder(
    config: RunConfig,
    run: RunFolder,
    *,
    accelerator: Accelerator | None = None,
    sources: Sources | None = None,
    resume: bool = False,
    resume_at: int | None = None,
    init_from: Path | None = None,
    load_distance: LoadDistance | None = None,
) -> Autoencoder:
    """Train the autoencoder of a run, and leave it in the run folder.

    Args:
        config: of the whole run.
        run: where everything lies.
        accelerator: of the processes; made from the configuration by default.
        sources: the images; those of `config.data` by default.
        resume: go on from the newest training checkpoint, if there is one; a run that is done is left as it is.
        resume_at: go on from the training checkpoint of this step.
        init_from: folder of other weights to begin from, unless training is resumed (`begin_from`).
        load_distance: finds the networks of perceptual terms, as `hvq.evaluation.load_feature_distance` does.

    Returns:
        The trained model, in evaluation mode, on the accelerator's device.

    Raises:
        ConfigurationError: where parts of the configuration do not go together, or a network cannot be had.
    """
    accelerator = accelerator or make_accelerator(config, run)
    training, beginning = config.autoencoder_training, Beginning(resume, resume_at, init_from)
    check_autoencoder(config.autoencoder)
    distances = _distances(config, load_distance, accelerator.device)
    sources = sources or build_sources_in_turn(config.data, config.seed, accelerator)
    model = _build(config)
    begun = beginning.fill(model, run.checkpoint(STAGE), run.autoencoder.relative_to(run.path))
    model.freeze(training.frozen_levels)
    optimization = Optimization(model, training, accelerator, seed=config.seed, quantizers=model.quantizers)
    adversary = _adversary(config, optimization, model)
    window, health = CodeWindow(), Health()
    kept: dict[str, Kept] = {"window": window, "health": health}
    checkpoint = TrainingCheckpoint(
        run.checkpoint(STAGE),
        optimization,
        _settings(config, sources.train, optimization, distances),
        kept=kept if adversary is None else {**kept, "adversary": adversary},
    )
    resumed = beginning.restore(checkpoint)
    if resume and not resumed and checkpoint.is_done(run.autoencoder):
        return _already_trained(run, accelerator)
    _require_codebooks(model, training.frozen_levels)
    stream = stream_of(sources.train, training, optimization, seed=config.seed, workers=config.data.workers)
    summary = autoencoder_summary(model, sources.train.size, config.autoencoder.channels, training, len(sources.train))
    says = [f"training the autoencoder on {len(sources.train)} {noun(sources.train.size)}s", summary, begun]
    log = open_stage(STAGE, config, run, checkpoint, resumed=resumed, says=says)
    start = ContinuousStart(model, training, _first_images(config, sources.train, optimization), optimization.reduction)
    train(
        optimization,
        stream,
        _losses(optimization, window, config, build_loss(training, distances=distances, adversary=adversary)),
        log=log,
        checkpoint=checkpoint,
        watch=ImageLooks(model, sources.validation, config.chunk_size, optimization.reduction, window),
        health=health,
        begin_step=start.begin_step,
        finish=lambda: _finish(config, run, sources.train, checkpoint, log),
    )
    return model.eval()


def _finish(
    config: RunConfig, run: RunFolder, source: ImageSource, checkpoint: TrainingCheckpoint, log: TrainingLog
) -> None:
    """Leave the trained model in the run folder, and say so."""
    optimization = checkpoint.optimization
    optimization.average.keep()
    model = optimization.model
    assert isinstance(model, Autoencoder)
    if optimization.accelerator.is_main_process:
        description = AutoencoderDescription(
            autoencoder=config.autoencoder, image_size=source.size, classes=source.classes
        )
        save_autoencoder(run.autoencoder, model, description)
        run.add_seconds(STAGE, checkpoint.seconds)
        checkpoint.remove()
        steps, seconds = optimization.step_number, checkpoint.seconds
        log.say(outcome(run, STAGE, steps=steps, seconds=seconds, left=run.autoencoder))
    optimization.accelerator.wait_for_everyone()


def _first_images(config: RunConfig, source: ImageSource, optimization: Optimization) -> Iterator[Tensor]:
    """The images of the first steps, wherever training goes on."""
    stream = stream_of(
        source,
        config.autoencoder_training,
        optimization,
        seed=config.seed,
        workers=config.data.workers,
        start_step=0,
    )
    # Closed in the end, with the workers that prepare its batches.
    with closing(iter(stream)) as steps:
        for step in steps:
            for batch in step:
                yield batch.images


def _settings(
    config: RunConfig, source: ImageSource, optimization: Optimization, distances: Mapping[str, FeatureDistance]
) -> dict[str, Any]:
    """What a resumed run must share with the one that was stopped."""
    accelerator = optimization.accelerator
    # Names alone, which make the order of samples: files may lie elsewhere by now.
    images = told_by_the_first(source, optimization.reduction, accelerator.device, contents=False)
    own = {"mixed_precision": accelerator.mixed_precision, "names_of_images": images}
    networks = {f"network_of_{name}": distance.name for name, distance in distances.items()}
    settings = config.parts("seed", "data", "autoencoder", "autoencoder_training")
    # Vectors are for the priors.
    settings["data"].pop("vectors")
    return {**settings, **own, **networks}


def _already_trained(run: RunFolder, accelerator: Accelerator) -> Autoencoder:
    accelerator.print(f"{run.autoencoder} is already trained; train without --resume to start anew")
    return load_autoencoder(run.autoencoder)[0].to(accelerator.device)


def _build(config: RunConfig) -> Autoencoder:
    with seeded(config.seed, STAGE):
        return weights_channels_last(build_autoencoder(config.autoencoder))


def _require_codebooks(model: Autoencoder, frozen_levels: Collection[str]) -> None:
    if fresh := [name for name in frozen_levels if not model.quantizers[name].initialized]:
        raise ConfigurationError(
            f"frozen_levels names {', '.join(fresh)}, whose weights are fresh; frozen levels take trained weights of "
            "the same shape: name their folder with --init-from"
        )


def _adversary(config: RunConfig, optimization: Optimization, model: Autoencoder) -> Adversary | None:
    """The discriminator that the configuration asks for, in training beside the model."""
    if config.autoencoder_training.adversary is None:
        return None
    name, term = config.autoencoder_training.adversary
    adversary = Adversary(
        term,
        optimization,
        decoder=model.decoder,
        channels=config.autoencoder.channels,
        name=name,
        seed=config.seed,
    )
    optimization.accompany(adversary)
    return adversary


def _distances(config: RunConfig, load: LoadDistance | None, device: torch.device) -> dict[str, FeatureDistance]:
    """The frozen networks of perceptual terms, by the term's name."""
    distances = {}
    for name, term in config.autoencoder_training.reconstruction.items():
        if term.kind != "perceptual":
            continue
        where = f"autoencoder_training.reconstruction.{name}"
        if load is None:
            raise ConfigurationError(
                f"{where} is of kind perceptual, and nothing finds its network; give fit_autoencoder "
                "load_distance=hvq.evaluation.load_feature_distance"
            )
        try:
            distance = load(term.extractor, channels=config.autoencoder.channels, size=config.data.size)
        except HVQError as error:
            raise ConfigurationError(f"{where}: {error}") from None
        distances[name] = distance.to(device)
    return distances


def _losses(
    optimization: Optimization, window: CodeWindow, config: RunConfig, loss: AutoencoderLoss
) -> Callable[[Batch], Losses]:
    def losses(batch: Batch) -> Losses:
        images = kept_to_model(batch.images.to(optimization.accelerator.device))
        kept = kept_levels(config, batch)
        kept = None if kept is None else kept.to(images.device)
        result = optimization.wrapped(images, kept, prefixes=loss.needs_prefixes)
        optimization.codebooks.add(result.levels)
        window.add(result.levels)
        return loss(result, images)

    return losses


def kept_levels(config: RunConfig, batch: Batch) -> Tensor | None:
    """How many of the coarsest levels each sample is decoded from, int64 `[B]`; None without level drop-out."""
    number = len(config.autoencoder.levels)
    if not config.autoencoder.level_dropout or number == 1:
        return None
    epochs, indices = batch.epochs.numpy(), batch.indices.numpy()
    dropped = uniform(config.seed, "level dropout", epochs, indices) < config.autoencoder.level_dropout
    fewer = 1 + (uniform(config.seed, "levels kept", epochs, indices) * (number - 1)).astype("int64")
    return torch.where(torch.from_numpy(dropped), torch.from_numpy(fewer), number)
