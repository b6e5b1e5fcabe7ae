"""Stage 2: the prior of one level."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from hvq.config import PriorStageConfig, RunConfig
from hvq.data import CodeBatch, CodeFolder, TrainingStream, ordered_batches
from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.priors import Prior, build_prior
from hvq.priors.likelihood import hidden_labels, nats_per_code, prior_inputs
from hvq.storage import RunFolder, encoder_hash, load_autoencoder, save_prior
from hvq.storage.models import PriorDescription
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.log import TrainingLog
from hvq.training.optimization import Losses, Optimization
from hvq.training.processes import describe, make_accelerator
from hvq.training.seeds import seeded

# Below this many nats a level's codes are all but constant: its codebook has collapsed.
_LEAST_ENTROPY = 0.01


def fit_prior(
    config: RunConfig,
    run: RunFolder,
    level: str,
    *,
    accelerator: Accelerator | None = None,
    resume: bool = False,
) -> Prior:
    """Train the prior of one level on the run's codes, and leave it in the run folder.

    The weights that are kept are those whose look at held-out codes was best, among the looks every `evaluate_every`
    steps; they are moving averages where `average_decay` says so.

    Args:
        config: of the whole run.
        run: where everything lies.
        level: name of the level.
        accelerator: of the processes; made from the configuration by default.
        resume: go on from the training checkpoint, if there is one.

    Returns:
        The trained prior, in evaluation mode, on the accelerator's device.

    Raises:
        ConfigurationError: where there is no such level.
        CheckpointError: where codes are missing, damaged, or of another autoencoder.
        DataError: where the level's codes are all but constant.
    """
    accelerator = accelerator or make_accelerator(config, run)
    train, held_out = open_codes(run, level)
    stage, name = config.prior(level), f"prior.{level}"
    unigram = held_out.entropy(level)
    if train.entropy(level) < _LEAST_ENTROPY:
        raise DataError(
            f"codes of level {level} are all but constant (entropy {train.entropy(level):.4f} nats): its "
            "codebook has collapsed; train the autoencoder longer or with another configuration before its prior"
        )
    with seeded(config.seed, name):
        prior = _build(stage, train, level)
    training = stage.training
    optimization = Optimization(prior, training, accelerator, seed=config.seed)
    best: dict[str, Tensor] = {}
    checkpoint = TrainingCheckpoint(run.checkpoint(name), optimization, config, extra=best)
    if resume:
        checkpoint.load_if_present()
    start = optimization.step_number
    stream = TrainingStream(
        train,
        batch_size=training.batch_size,
        micro_batches=training.micro_batches,
        rank=optimization.reduction.rank,
        processes=optimization.reduction.size,
        seed=config.seed,
        start_step=start,
    )
    log = TrainingLog(
        stage=name, file=run.metrics_lines, accelerator=accelerator, steps=training.steps, start_step=start
    )
    log.say(f"training the prior of level {level} on {len(train)} grids of codes: {describe(accelerator)}")

    def losses(batch: CodeBatch) -> Losses:
        hidden = hidden_labels(batch, seed=config.seed, share=training.label_dropout)
        codes, condition = prior_inputs(
            batch, level, level_names=train.level_names, device=accelerator.device, hidden_labels=hidden
        )
        logits = optimization.wrapped(codes, condition).float()
        nats = functional.cross_entropy(logits.flatten(0, -2), codes.flatten())
        return nats, {"nats": nats.detach()}

    prior.train()
    log.start_clock()
    for step, micro_batches in zip(range(start + 1, training.steps + 1), stream, strict=False):
        report = optimization.step(micro_batches, losses)
        log.advance()
        if step % training.log_every == 0 or step == training.steps:
            rate = log.samples_per_second(training.batch_size)
            numbers = {"nats": report.terms["nats"], "gradient_norm": report.gradient_norm}
            log.write(step, {**numbers, "images_per_second": rate})
        if step % training.evaluate_every == 0 or step == training.steps:
            with optimization.average.applied():
                nats = held_out_nats(prior, held_out, level, config.chunk_size, optimization.reduction)
                if nats < float(best.get("nats", torch.tensor(math.inf))):
                    best.clear()
                    best.update({f"weights/{key}": tensor.clone() for key, tensor in prior.state_dict().items()})
                    best["nats"] = torch.tensor(nats, dtype=torch.float64)
            log.write(step, {"held_out_nats": nats, "unigram_entropy": unigram})
        if step % training.checkpoint_every == 0 and step < training.steps:
            checkpoint.save()
    log.close()
    if "nats" not in best:
        raise DataError(f"held-out nats of level {level} were never finite; lower its learning_rate")
    prior.load_state_dict({key.removeprefix("weights/"): value for key, value in best.items() if key != "nats"})
    if accelerator.is_main_process:
        save_prior(run.prior(level), prior, _describe(stage, train, level, float(best["nats"])))
        checkpoint.remove()
    accelerator.wait_for_everyone()
    return prior.eval()


def open_codes(run: RunFolder, level: str) -> tuple[CodeFolder, CodeFolder]:
    """Codes of both splits, made by the run's autoencoder.

    Raises:
        ConfigurationError: where there is no such level.
        CheckpointError: where codes are missing, damaged, or of another autoencoder.
    """
    model, _ = load_autoencoder(run.autoencoder)
    if level not in model.level_names:
        raise ConfigurationError(f"no level {level!r}; the levels of {run.path} are {', '.join(model.level_names)}")
    expected = encoder_hash(model)
    folders = CodeFolder(run.codes, "train"), CodeFolder(run.codes, "validation")
    for folder in folders:
        folder.require_encoder(expected)
    return folders


def held_out_nats(prior: Prior, codes: CodeFolder, level: str, chunk_size: int, reduction: Reduction) -> float:
    """Mean nats per code over a split, which the processes share."""
    return nats_per_code(
        prior,
        ordered_batches(codes, chunk_size=chunk_size, rank=reduction.rank, processes=reduction.size),
        level,
        level_names=codes.level_names,
        chunk_size=chunk_size,
        reduction=reduction,
    )


def _build(stage: PriorStageConfig, codes: CodeFolder, level: str) -> Prior:
    return build_prior(
        stage.model,
        codebook_size=codes.codebook_sizes[level],
        coarser=_coarser(codes, level),
        num_classes=len(codes.classes),
    )


def _coarser(codes: CodeFolder, level: str) -> dict[str, int]:
    names = codes.level_names[: codes.level_names.index(level)]
    return {name: codes.codebook_sizes[name] for name in names}


def _describe(stage: PriorStageConfig, codes: CodeFolder, level: str, nats: float) -> PriorDescription:
    return PriorDescription(
        model=stage.model,
        level=level,
        codebook_size=codes.codebook_sizes[level],
        coarser=_coarser(codes, level),
        grid=codes.grids[level],
        image_size=codes.image_size,
        classes=codes.classes,
        encoder_hash=codes.encoder_hash,
        sampling=stage.sampling,
        held_out_nats=nats,
    )
