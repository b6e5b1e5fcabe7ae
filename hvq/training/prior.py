"""Stage 2: the prior of one level."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.nn import functional

from hvq.config import PriorStageConfig, RunConfig
from hvq.data import CodeBatch, CodeFolder
from hvq.data.code_vectors import require_whole_vectors, vector_statistics
from hvq.errors import CheckpointError, ConfigurationError, DataError
from hvq.histograms import entropy
from hvq.priors import Prior, build_prior
from hvq.priors.likelihood import hidden_labels_and_vectors, prior_inputs
from hvq.priors.vector_reader import standardize_vectors
from hvq.storage import RunFolder, encoder_hash, load_autoencoder, load_prior, save_prior
from hvq.storage.models import PriorDescription
from hvq.training.beginning import Beginning
from hvq.training.checkpoints import TrainingCheckpoint
from hvq.training.held_out import HeldOutRecord
from hvq.training.log import TrainingLog
from hvq.training.looks import CodeLooks
from hvq.training.loop import Health, train
from hvq.training.optimization import Losses, Optimization
from hvq.training.processes import make_accelerator
from hvq.training.seeds import seeded
from hvq.training.sharding import gather
from hvq.training.stage import open_stage, stream_of
from hvq.training.summary import outcome, prior_summary

# Below this many nats a level's codes are all but constant: its codebook has collapsed.
_LEAST_ENTROPY = 0.01


def fit_prior(
    config: RunConfig,
    run: RunFolder,
    level: str,
    *,
    accelerator: Accelerator | None = None,
    resume: bool = False,
    resume_at: int | None = None,
    init_from: Path | None = None,
) -> Prior:
    """Train the prior of one level on the run's codes, and leave it in the run folder.

    The weights that are kept are those whose look at held-out codes was best, among the looks every `evaluate_every`
    steps; they are moving averages where `average_decay` says so. Training ends early after `patience` looks without
    improvement.

    Args:
        config: of the whole run.
        run: where everything lies.
        level: name of the level.
        accelerator: of the processes; made from the configuration by default.
        resume: go on from the newest training checkpoint, if there is one; a prior of these codes that is
            done is left as it is.
        resume_at: go on from the training checkpoint of this step.
        init_from: folder of other weights to begin from, unless training is resumed (`begin_from`).

    Returns:
        The trained prior, in evaluation mode, on the accelerator's device; in shards, under FSDP.

    Raises:
        ConfigurationError: where there is no such level.
        CheckpointError: where codes are missing, damaged, or of another autoencoder.
        DataError: where codes of the level are all but constant, the loss is never finite, or the configuration names
            vectors, and the codes have none.
    """
    accelerator = accelerator or make_accelerator(config, run)
    codes, held_out = open_codes(run, level)
    _require_vectors(config, codes, held_out)
    stage, name, beginning = config.prior(level), f"prior.{level}", Beginning(resume, resume_at, init_from)
    with seeded(config.seed, name):
        prior = _build(stage, codes, level)
    begun = beginning.fill(prior, run.checkpoint(name), run.prior(level).relative_to(run.path))
    optimization = Optimization(prior, stage.training, accelerator, seed=config.seed)
    record, health = HeldOutRecord(stage.training.patience), Health()
    checkpoint = TrainingCheckpoint(
        run.checkpoint(name),
        optimization,
        _settings(config, stage, codes, accelerator),
        kept={"record": record, "health": health},
    )
    resumed = beginning.restore(checkpoint)
    if resume and not resumed and checkpoint.is_done(run.prior(level)):
        done = _already_trained(run, level, codes, accelerator)
        if done is not None:
            return done
    stream = stream_of(codes, stage.training, optimization, seed=config.seed)
    summary = prior_summary(prior, codes, level, stage.training)
    says = [f"training the prior of level {level} on {len(codes)} grids of codes", summary, begun]
    log = open_stage(name, config, run, checkpoint, resumed=resumed, says=says)
    looks = CodeLooks(held_out, level, config.chunk_size, optimization, record, log)

    def finish() -> None:
        record.restore(prior)
        looks.summarize()
        _finish(run, checkpoint, level, _describe(stage, codes, level, record.score), log)

    losses = _losses(config, optimization, codes, level)
    train(optimization, stream, losses, log=log, checkpoint=checkpoint, watch=looks, health=health, finish=finish)
    return prior.eval()


def _already_trained(run: RunFolder, level: str, codes: CodeFolder, accelerator: Accelerator) -> Prior | None:
    """The prior that is there, where it is one of these codes."""
    prior, about = load_prior(run.prior(level))
    hashes = codes.encoder_hash, codes.description.content_hash
    if (about.encoder_hash, about.codes_hash or hashes[1]) != hashes:
        return None
    accelerator.print(f"{run.prior(level)} is already trained; train without --resume to start anew")
    return prior.to(accelerator.device)


def _finish(
    run: RunFolder, checkpoint: TrainingCheckpoint, level: str, description: PriorDescription, log: TrainingLog
) -> None:
    """Leave the trained prior in the run folder, and say so."""
    optimization = checkpoint.optimization
    is_main = optimization.accelerator.is_main_process
    weights = gather(optimization.model.state_dict(), keep=is_main)
    if is_main:
        save_prior(run.prior(level), weights, description)
        run.add_seconds(log.stage, checkpoint.seconds)
        checkpoint.remove()
        steps, seconds = optimization.step_number, checkpoint.seconds
        log.say(outcome(run, log.stage, steps=steps, seconds=seconds, left=run.prior(level)))
    optimization.accelerator.wait_for_everyone()


def _settings(
    config: RunConfig, stage: PriorStageConfig, codes: CodeFolder, accelerator: Accelerator
) -> dict[str, Any]:
    """What a resumed run must share with the one that was stopped."""
    return {
        **config.parts("seed"),
        "mixed_precision": accelerator.mixed_precision,
        "prior": stage.model_dump(mode="json"),
        "encoder_hash": codes.encoder_hash,
        "codes": codes.description.content_hash,
    }


def _losses(
    config: RunConfig, optimization: Optimization, codes: CodeFolder, level: str
) -> Callable[[CodeBatch], Losses]:
    training = config.prior(level).training

    def losses(batch: CodeBatch) -> Losses:
        labels, vectors = hidden_labels_and_vectors(
            batch, seed=config.seed, label_share=training.label_dropout, vector_share=training.vector_dropout
        )
        targets, condition = prior_inputs(
            batch,
            level,
            level_names=codes.level_names,
            device=optimization.accelerator.device,
            hidden_labels=labels,
            hidden_vectors=vectors,
        )
        logits = optimization.wrapped(targets, condition).float()
        nats = functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
        return nats, {"nats": nats.detach()}

    return losses


def open_codes(run: RunFolder, level: str) -> tuple[CodeFolder, CodeFolder]:
    """Codes of both splits, made by the run's autoencoder.

    Raises:
        ConfigurationError: where there is no such level.
        CheckpointError: where codes are missing, damaged, or of another autoencoder.
        DataError: where codes of the level are all but constant.
    """
    model, _ = load_autoencoder(run.autoencoder)
    if level not in model.level_names:
        raise ConfigurationError(f"no level {level!r}; the levels of {run.path} are {', '.join(model.level_names)}")
    model.require_codes("a prior")
    expected = encoder_hash(model)
    train_codes, held_out = CodeFolder(run.codes, "train"), CodeFolder(run.codes, "validation")
    for folder in (train_codes, held_out):
        folder.require_encoder(expected)
        require_whole_vectors(folder.path, folder.description)
    _refuse_collapse(train_codes, level)
    return train_codes, held_out


def _require_vectors(config: RunConfig, codes: CodeFolder, held_out: CodeFolder) -> None:
    """Refuse codes whose vectors are not those of one extraction, or not there although they are asked for."""
    again = "extract the codes again, with --resume to keep those that are whole"
    if config.data.vectors.train is not None and not codes.vector_size:
        raise DataError(f"data.vectors.train names vectors, and the codes in {codes.path} have none; {again}")
    if codes.vector_size != held_out.vector_size:
        raise CheckpointError(
            f"training codes in {codes.path.parent} have vectors of {codes.vector_size} numbers, and held-out ones of "
            f"{held_out.vector_size}; {again}"
        )


def _refuse_collapse(codes: CodeFolder, level: str) -> None:
    """Refuse codes that a prior has nothing to learn from; of several per position, each has to tell something."""
    histograms = codes.counts(level)
    for i, counts in enumerate(histograms):
        nats = float(entropy(counts))
        if nats < _LEAST_ENTROPY:
            several = len(histograms) > 1
            which = f"code {i + 1} of the {len(histograms)} per position of level {level} is" if several else ""
            raise DataError(
                f"{which or f'codes of level {level} are'} all but constant: their entropy must be at least "
                f"{_LEAST_ENTROPY} nats and is {nats:.4f} (log K is {math.log(len(counts)):.4f}), and "
                f"{int((counts > 0).sum())} of {len(counts)} codes occur. The codebook has collapsed: train the "
                "autoencoder anew, for more steps, with autoencoder.level_dropout (so that no finer level does this "
                f"one's work), or with fewer {'codes per position' if several else 'levels'}, and extract the codes"
            )


def _build(stage: PriorStageConfig, codes: CodeFolder, level: str) -> Prior:
    several = codes.description.codes_per_position
    prior = build_prior(
        stage.model,
        codebook_size=codes.codebook_sizes[level],
        coarser=_coarser(codes, level),
        num_classes=len(codes.classes),
        codes_per_position=several.get(level, 1),
        coarser_codes_per_position=several,
        vector_size=codes.vector_size,
        spatial_dims=len(codes.grids[level]),
    )
    if codes.vectors is not None:
        standardize_vectors(prior, *vector_statistics(codes.vectors))
    return prior


def _coarser(codes: CodeFolder, level: str) -> dict[str, int]:
    names = codes.level_names[: codes.level_names.index(level)]
    return {name: codes.codebook_sizes[name] for name in names}


def _describe(stage: PriorStageConfig, codes: CodeFolder, level: str, nats: float) -> PriorDescription:
    coarser = _coarser(codes, level)
    several = codes.description.codes_per_position
    return PriorDescription(
        model=stage.model,
        level=level,
        codebook_size=codes.codebook_sizes[level],
        coarser=coarser,
        codes_per_position={name: several[name] for name in (*coarser, level) if name in several},
        vector_size=codes.vector_size,
        grid=codes.grids[level],
        image_size=codes.image_size,
        classes=codes.classes,
        encoder_hash=codes.encoder_hash,
        codes_hash=codes.description.content_hash,
        sampling=stage.sampling,
        held_out_nats=nats,
    )
