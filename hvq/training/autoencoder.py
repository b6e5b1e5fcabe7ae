"""Stage 1: the autoencoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from hvq.autoencoders import Autoencoder, AutoencoderLoss, build_autoencoder, check_autoencoder, initialize_codebooks
from hvq.autoencoders.initialization import needs_codebooks
from hvq.chunks import map_chunks
from hvq.config import RunConfig
from hvq.data import Batch, ImageSource, Sources, TrainingStream, build_sources, ordered_batches
from hvq.data.pixels import bytes_to_model, model_to_unit
from hvq.distributed import Reduction
from hvq.randomness import uniform
from hvq.storage import RunFolder, load_autoencoder, save_autoencoder
from hvq.storage.models import AutoencoderDescription
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.code_window import CodeWindow
from hvq.training.log import TrainingLog
from hvq.training.loop import train
from hvq.training.optimization import Losses, Optimization
from hvq.training.processes import describe, make_accelerator
from hvq.training.seeds import seeded

STAGE = "autoencoder"
# What a resumed run must share with the one that was stopped.
_SETTINGS = ("seed", "mixed_precision", "data", "autoencoder", "autoencoder_training")
# Held-out images looked at while training; the whole split is evaluated at the end.
_HELD_OUT_IMAGES = 1_024


def fit_autoencoder(
    config: RunConfig,
    run: RunFolder,
    *,
    accelerator: Accelerator | None = None,
    sources: Sources | None = None,
    resume: bool = False,
) -> Autoencoder:
    """Train the autoencoder of a run, and leave it in the run folder.

    Args:
        config: of the whole run.
        run: where everything lies.
        accelerator: of the processes; made from the configuration by default.
        sources: the images; those of `config.data` by default.
        resume: go on from the training checkpoint, if there is one; a run that is done is left as it is.

    Returns:
        The trained model, in evaluation mode, on the accelerator's device.
    """
    accelerator = accelerator or make_accelerator(config, run)
    training = config.autoencoder_training
    check_autoencoder(config.autoencoder)
    sources = sources or build_sources(config.data, config.seed)
    model, optimization = _prepare(config, accelerator)
    checkpoint = TrainingCheckpoint(run.checkpoint(STAGE), optimization, config.parts(*_SETTINGS))
    if resume and not checkpoint.load_if_present() and run.autoencoder.exists():
        return _already_trained(run, accelerator)
    start = optimization.step_number
    stream = _stream(config, sources.train, optimization.reduction, start)
    if accelerator.is_main_process:
        # Not before: what is refused above leaves the configuration of an earlier run as it was.
        run.save_config(config)
    log = TrainingLog(
        stage=STAGE, file=run.metrics_lines, accelerator=accelerator, steps=training.steps, start_step=start
    )
    log.say(f"training the autoencoder on {len(sources.train)} images: {describe(accelerator)}")
    if needs_codebooks(model):
        images = (bytes_to_model(batch.images.to(accelerator.device)) for step in stream for batch in step)
        initialize_codebooks(model, images, optimization.reduction, batches_per_step=training.micro_batches)
    window = CodeWindow()
    train(
        optimization,
        stream,
        _losses(config, optimization, window),
        log=log,
        checkpoint=checkpoint,
        window=lambda: window.numbers(optimization.reduction),
        look=lambda: {
            "held_out_mse": held_out_error(model, sources.validation, config.chunk_size, optimization.reduction)
        },
    )
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


def _prepare(config: RunConfig, accelerator: Accelerator) -> tuple[Autoencoder, Optimization]:
    with seeded(config.seed, STAGE):
        model = build_autoencoder(config.autoencoder)
    # Channels last is the layout in which convolutions are fastest, on CPUs and GPUs alike.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimization = Optimization(
        model, config.autoencoder_training, accelerator, seed=config.seed, quantizers=model.quantizers
    )
    return model, optimization


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


@torch.no_grad()
def held_out_error(model: Autoencoder, source: ImageSource, chunk_size: int, reduction: Reduction) -> float:
    """Mean squared error on [0, 1] over the first held-out images, the same for any number of processes."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros(2, dtype=torch.float64)
    for batch in ordered_batches(source, chunk_size=chunk_size, rank=reduction.rank, processes=reduction.size):
        if int(batch.indices[0]) >= _HELD_OUT_IMAGES:
            break
        images = bytes_to_model(batch.images.to(device))
        parts = map_chunks(
            lambda part: {"images": model(part["images"]).reconstruction}, {"images": images}, chunk_size
        )
        restored = torch.cat([part["images"] for part in parts])
        squared = (model_to_unit(restored) - model_to_unit(images)).double().square().sum()
        total += torch.stack([squared.cpu(), torch.tensor(float(images.numel()), dtype=torch.float64)])
    model.train(was_training)
    squared_sum, count = reduction.sum(total.to(device)).tolist()
    return squared_sum / max(1.0, count)


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
