"""Everything that is measured of a run, into `metrics.json` and the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hvq.chunks import map_chunks
from hvq.config import RunConfig
from hvq.data import (
    Batch,
    CodeFolder,
    ImageSource,
    Sources,
    Subset,
    build_sources,
    ordered_batches,
    spread_rows,
)
from hvq.data.pixels import bytes_to_model, bytes_to_unit, model_to_unit, unit_to_bytes
from hvq.distributed import Reduction, current_reduction
from hvq.evaluation.classification import SMALLEST_SIDE, classification_accuracy
from hvq.evaluation.code_usage import CodeUsage
from hvq.evaluation.copies import copy_share
from hvq.evaluation.real_images import MOST_REAL_IMAGES, gather_images, labelled
from hvq.evaluation.reconstruction import ReconstructionMetrics
from hvq.evaluation.samples import class_labels, draw_samples
from hvq.priors.likelihood import nats_per_code
from hvq.storage import Hierarchy, RunFolder, encoder_hash, load_hierarchy, require_channels

Numbers = dict[str, Any]

_ABOUT_PRIORS = (
    "nats per code. held_out_nats: of held-out codes; train_nats: of as many training images, spread over all of them, "
    "without augmentation and drop-out, far fewer where a prior over-fits; unigram_entropy: what a model reaches that "
    "knows the frequencies of the held-out codes alone; log_codebook_size: log K, one that takes all codes for equally "
    "likely"
)


def evaluate(config: RunConfig, run: RunFolder, *, accelerator: Accelerator, sources: Sources | None = None) -> Numbers:
    """Measure what a run has: reconstruction, codes, priors, and the classification accuracy score.

    Args:
        config: of the run.
        run: where everything lies; `metrics.json` there is brought up to date.
        accelerator: of the processes, which share the work; the numbers do not depend on how many they are.
        sources: the images; those of `config.data` by default.

    Returns:
        All numbers of `metrics.json`.

    Raises:
        CheckpointError: where a model or codes are missing, damaged, or do not belong together.
    """
    sources = sources or build_sources(config.data, config.seed)
    hierarchy = load_hierarchy(run).to(accelerator.device)
    require_channels(hierarchy.channels, sources.validation.channels)
    reduction = current_reduction()
    numbers = measure_reconstruction(config, hierarchy, sources.validation, reduction)
    if hierarchy.priors:
        numbers |= measure_priors(config, run, hierarchy, reduction)
        numbers["about"]["priors"] = _ABOUT_PRIORS
    if set(hierarchy.priors) == set(hierarchy.autoencoder.level_names):
        error = numbers["reconstruction"]["mse"]
        score, about = measure_samples(config, run, hierarchy, sources, error, reduction)
        numbers["classification_accuracy_score"] = score
        numbers["about"]["classification_accuracy_score"] = about
    if reduction.rank == 0:
        run.write_metrics(numbers)
    accelerator.wait_for_everyone()
    return run.metrics()


@torch.no_grad()
def encode_and_restore(hierarchy: Hierarchy, images: Tensor, chunk_size: int) -> dict[str, Tensor]:
    """Codes, reconstruction, and reconstructions with each level absent, of uint8 images `[B, C, H, W]`.

    Returns:
        `codes.<level>`, `images`, and `absent.<level>`, the images in [0, 1], on the models' device.
    """
    model = hierarchy.autoencoder
    device = next(model.parameters()).device
    size = images.shape[2:]

    def forward(part: dict[str, Tensor]) -> dict[str, Tensor]:
        codes = model.encode(bytes_to_model(part["images"].to(device)))
        results = {f"codes.{name}": code for name, code in codes.items()}
        results["images"] = model_to_unit(model.decode(codes, size=size))
        for name in model.level_names:
            results[f"absent.{name}"] = model_to_unit(model.decode(codes, size=size, absent=(name,)))
        return results

    parts = list(map_chunks(forward, {"images": images}, chunk_size))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def measure_reconstruction(
    config: RunConfig, hierarchy: Hierarchy, source: ImageSource, reduction: Reduction
) -> Numbers:
    """MSE, PSNR, SSIM over a split; usage, perplexity, and error without it, of each level."""
    device = next(hierarchy.autoencoder.parameters()).device
    names = hierarchy.autoencoder.level_names
    metrics = ReconstructionMetrics().to(device)
    usage = {
        name: CodeUsage(codebook_size=quantizer.codebook_size, codes_per_position=quantizer.codes_per_position).to(
            device
        )
        for name, quantizer in hierarchy.autoencoder.quantizers.items()
        if quantizer.discrete
    }
    absent = {name: torch.zeros(2, dtype=torch.float64, device=device) for name in names}
    for batch in _share(source, config, reduction):
        images = bytes_to_unit(batch.images.to(device))
        restored = encode_and_restore(hierarchy, batch.images, config.chunk_size)
        metrics.update(images, restored["images"])
        # Padding is left out, as it is where codebooks learn.
        codes = hierarchy.autoencoder.without_padding({name: restored[f"codes.{name}"] for name in names}, source.size)
        for name, histogram in usage.items():
            histogram.update(codes[name])
        for name in names:
            squared = (restored[f"absent.{name}"] - images).double().square().sum()
            absent[name] += torch.stack([squared, squared.new_tensor(images.numel())])
    levels: Numbers = {}
    for name, level in hierarchy.autoencoder.levels.items():
        squared_sum, count = reduction.sum(absent[name]).tolist()
        levels[name] = {
            **_usage_numbers(usage.get(name)),
            "absent_mse": squared_sum / count,
            "absent_stand_in": "learned vector" if level.absent is not None else _mean_vector(name in usage),
        }
    height, width = source.size
    about = {
        **{f"reconstruction.{name}": text for name, text in metrics.about().items()},
        "split": f"{len(source)} held-out images, {height}x{width}, {hierarchy.channels} channel(s), pixels in [0, 1]",
        "levels": "usage: share of codes that occur in the held-out split; perplexity: exp of the entropy of their "
        "histogram over it, both left out where a level's bottleneck is Gaussian and it has no codes; absent_mse: "
        "error on [0, 1] with that level alone replaced by its stand-in",
    }
    return {"reconstruction": metrics.compute(), "levels": levels, "about": about}


def _mean_vector(discrete: bool) -> str:
    return "mean codebook vector" if discrete else "mean of the prior"


def _usage_numbers(usage: CodeUsage | None) -> dict[str, float]:
    """Of a level; none where it has no codes."""
    if usage is None:
        return {}
    histogram = usage.compute()
    return {"usage": float(histogram.usage), "perplexity": float(histogram.perplexity)}


def measure_priors(config: RunConfig, run: RunFolder, hierarchy: Hierarchy, reduction: Reduction) -> Numbers:
    """Nats per code of each prior's very weights, on held-out codes and on as many of training images.

    Beside them stands what is reached without a prior: the entropy of the held-out codes' frequencies, and log K.
    """
    held_out, training = CodeFolder(run.codes, "validation"), CodeFolder(run.codes, "train")
    for codes in (held_out, training):
        codes.require_encoder(encoder_hash(hierarchy.autoencoder))
    # The first rows are the images as they are; augmented ones come later.
    seen = Subset(training, spread_rows(training.num_images, len(held_out)))
    priors: Numbers = {}
    for name, prior in hierarchy.priors.items():
        nats = {
            what: nats_per_code(
                prior,
                ordered_batches(source, chunk_size=config.chunk_size, rank=reduction.rank, processes=reduction.size),
                name,
                level_names=held_out.level_names,
                chunk_size=config.chunk_size,
                reduction=reduction,
            )
            for what, source in (("held_out_nats", held_out), ("train_nats", seen))
        }
        references = {"unigram_entropy": held_out.entropy(name), "log_codebook_size": math.log(prior.codebook_size)}
        priors[name] = nats | references
    return {"priors": priors}


def measure_samples(
    config: RunConfig,
    run: RunFolder,
    hierarchy: Hierarchy,
    sources: Sources,
    reconstruction_error: float,
    reduction: Reduction,
) -> tuple[Numbers, str]:
    """The classification accuracy score of samples, reconstructions and real images, and the share of copies.

    Args:
        config: of the run.
        run: where everything lies.
        hierarchy: with a prior for every level.
        sources: the images.
        reconstruction_error: held-out mean squared error; nearer than that to a training image, a sample is a copy.
        reduction: over the processes that share the work.

    Returns:
        The numbers, and what they mean.
    """
    labels = torch.tensor(class_labels(len(hierarchy.classes), config.evaluation.generated_per_class))
    generated = draw_samples(config, hierarchy, labels.tolist(), reduction=reduction, what="samples to be measured")
    real = _gathered(sources.train, config, hierarchy, reduction)
    copies = copy_share(
        generated.images, generated.codes, real["images"], _training_codes(run), threshold=reconstruction_error
    )
    numbers = {"copies": copies.share, "copies_by_codes": copies.by_codes}
    about = (
        f"copies: share of {len(labels)} generated images whose codes equal those of a training image, or whose pixels "
        "are as near to one as reconstructions are on average (mean squared error on [0, 1] up to "
        f"{reconstruction_error:.2g})"
    )
    held_out = labelled(_gathered(sources.validation, config, hierarchy, reduction))
    real = labelled(real)
    if not len(held_out["labels"]) or not len(real["labels"]):
        return numbers, f"{about}. There is no accuracy score without labels in both splits"
    if min(hierarchy.image_size) < SMALLEST_SIDE:
        return numbers, f"{about}. There is no accuracy score under {SMALLEST_SIDE} pixels, the classifier's smallest"
    training = {
        "generated": (generated.images, labels),
        "reconstructed": (real["restored"], real["labels"]),
        "real": (real["images"], real["labels"]),
    }
    device = next(hierarchy.autoencoder.parameters()).device
    scores = classification_scores(config, training, held_out, len(hierarchy.classes), reduction, device)
    precision = config.sampling.precision
    drawn_in = "" if precision == "float32" else f" (priors in {precision})"
    score_about = (
        f"accuracy on {len(held_out['labels'])} held-out real images of a classifier trained for "
        f"{config.evaluation.classifier_steps} steps on {len(labels)} generated images{drawn_in}, on reconstructions "
        f"of {len(real['labels'])} training images, and on these themselves; mean of "
        f"{config.evaluation.classifier_seeds} seeds"
    )
    return {**scores, **numbers}, f"{score_about}. {about}"


def classification_scores(
    config: RunConfig,
    training: dict[str, tuple[Tensor, Tensor]],
    held_out: dict[str, Tensor],
    num_classes: int,
    reduction: Reduction,
    device: torch.device,
) -> dict[str, float]:
    """Mean accuracy over seeds for each set of training images; processes share the classifiers out among them."""
    seeds = config.evaluation.classifier_seeds
    jobs = [(name, seed) for name in training for seed in range(seeds)]
    totals = torch.zeros(len(training), dtype=torch.float64, device=device)
    for name, seed in jobs[reduction.rank :: reduction.size]:
        images, labels = training[name]
        totals[list(training).index(name)] += classification_accuracy(
            images.to(device),
            labels.to(device),
            held_out["images"],
            held_out["labels"],
            num_classes=num_classes,
            steps=config.evaluation.classifier_steps,
            seed=seed,
        )
    return dict(zip(training, (reduction.sum(totals) / seeds).tolist(), strict=True))


def _share(source: ImageSource, config: RunConfig, reduction: Reduction) -> Iterator[Batch]:
    return ordered_batches(
        source,
        chunk_size=config.chunk_size,
        rank=reduction.rank,
        processes=reduction.size,
        workers=config.data.workers,
    )


def _gathered(source: ImageSource, config: RunConfig, hierarchy: Hierarchy, reduction: Reduction) -> dict[str, Tensor]:
    """Images of a split with their labels and reconstructions, on the CPU of every process."""

    def restore(images: Tensor) -> Tensor:
        return unit_to_bytes(encode_and_restore(hierarchy, images, config.chunk_size)["images"])

    device = next(hierarchy.autoencoder.parameters()).device
    gathered = gather_images(config, source, reduction, device, restore)
    return {name: column.cpu() for name, column in gathered.items()}


def _training_codes(run: RunFolder) -> dict[str, Tensor]:
    """Codes of the same training images that `gather_images` gives, in every augmented epoch."""
    folder = CodeFolder(run.codes, "train")
    images = spread_rows(folder.num_images, MOST_REAL_IMAGES)
    epochs = np.arange(folder.description.augmented_epochs)
    return folder.fetch((epochs[:, None] * folder.num_images + images).flatten()).codes
