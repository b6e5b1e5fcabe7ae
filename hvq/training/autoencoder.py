"""Stage 1: the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    build_autoencoder,
    check_autoencoder,
    initialize_codebooks,
    weights_channels_last,
)
from hvq.autoencoders.initialization import needs_codebooks
from hvq.config import RunConfig
from hvq.data import Batch, ImageSource, Sources, TrainingStream, build_sources
from hvq.data.pixels import bytes_to_model
from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.randomness import uniform
from hvq.storage import RunFolder, load_autoencoder, save_autoencoder
from hvq.storage.models import AutoencoderDescription
from hvq.training.beginning import Beginning
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.code_window import CodeWindow
from hvq.training.image_looks import ImageLooks
from hvq.training.log import TrainingLog
from hvq.training.loop import Health, train
from hvq.training.optimization import Losses, Optimization
from hvq.training.processes import describe, make_accelerator
from hvq.training.seeds import seeded

STAGE = "autoencoder"
# What a resumed run must share with the one that was stopped.
_SETTINGS = ("seed", "mixed_precision", "data", "autoencoder", "autoencoder_training")


def fit_autoencoder(
    config: RunConfig,
    run: RunFolder,
    *,
    accelerator: Accelerator | None = None,
    sources: Sources | None = None,
    resume: bool = False,
    resume_at: int | None = None,
    init_from: Path | None = None,
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

    Returns:
        The trained model, in evaluation mode, on the accelerator's device.
    """
    accelerator = accelerator or make_accelerator(config, run)
    training = config.autoencoder_training
    check_autoencoder(config.autoencoder)
    sources = sources or build_sources(config.data, config.seed)
    beginning = Beginning(resume, resume_at, init_from)
    model = _build(config)
    begun = beginning.fill(model, run.checkpoint(STAGE), run.autoencoder.relative_to(run.path))
    model.freeze(training.frozen_levels)
    optimization = Optimization(model, training, accelerator, seed=config.seed, quantizers=model.quantizers)
    window, health = CodeWindow(), Health()
    checkpoint = TrainingCheckpoint(
        run.checkpoint(STAGE),
        optimization,
        config.parts(*_SETTINGS),
        kept={"window": window, "health": health},
    )
    resumed = beginning.restore(checkpoint)
    if resume and not resumed and run.autoencoder.exists():
        return _already_trained(run, accelerator)
    _require_codebooks(model, training.frozen_levels)
    stream = _stream(config, sources.train, optimization.reduction, optimization.step_number)
    if accelerator.is_main_process:
        # Not before: what is refused above leaves the configuration of an earlier run as it was.
        run.save_config(config)
    log = TrainingLog.of(STAGE, run, optimization)
    log.say(f"training the autoencoder on {len(sources.train)} images: {describe(accelerator)}")
    log.say(begun, checkpoint.begin(resumed=resumed))
    if needs_codebooks(model):
        images = (bytes_to_model(batch.images.to(accelerator.device)) for step in stream for batch in step)
        initialize_codebooks(model, images, optimization.reduction, batches_per_step=training.micro_batches)
    watch = ImageLooks(model, sources.validation, config.chunk_size, optimization.reduction, window)
    losses = _losses(config, optimization, window)
    train(optimization, stream, losses, log=log, checkpoint=checkpoint, watch=watch, health=health)
    optimization.average.keep()
    if accelerator.is_main_process:
        description = AutoencoderDescription(
            autoencoder=config.autoencoder, image_size=sources.train.size, classes=sources.train.classes
        )
        save_autoencoder(run.autoencoder, model, description)
        checkpoint.remove()
    accelerator.wait_for_everyone()
    return model.eval()


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


def _losses(config: RunConfig, optimization: Optimization, window: CodeWindow) -> Callable[[Batch], Losses]:
    training = config.autoencoder_training
    loss = AutoencoderLoss(
        reconstruction=training.reconstruction,
        commitment_weight=training.commitment_weight,
        codebook_weight=training.codebook_weight,
        entropy_weight=training.entropy_weight,
        kl_weight=training.kl_weight,
    )

    def losses(batch: Batch) -> Losses:
        images = bytes_to_model(batch.images.to(optimization.accelerator.device))
        kept = kept_levels(config, batch)
        result = optimization.wrapped(images, None if kept is None else kept.to(images.device))
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


def _stream(config: RunConfig, source: ImageSource, reduction: Reduction, start: int) -> TrainingStream[Batch]:
    return TrainingStream(
        source,
        batch_size=config.autoencoder_training.batch_size,
        micro_batches=config.autoencoder_training.micro_batches,
        rank=reduction.rank,
        processes=reduction.size,
        seed=config.seed,
        workers=config.data.workers,
        start_step=start,
    )
