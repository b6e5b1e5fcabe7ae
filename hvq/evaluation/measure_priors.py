"""Nats per code of the priors, and bits: of an image's codes, and per dimension of the whole model."""

from __future__ import annotations

import math

from torch import Tensor

from hvq.config import RunConfig
from hvq.data import CodeFolder, Subset, ordered_batches, spread_rows
from hvq.distributed import Reduction
from hvq.evaluation.generation import level_code_shape
from hvq.evaluation.likelihood import LIKELIHOODS, PixelPairs, bits_per_dimension
from hvq.evaluation.measured import Measured, Numbers
from hvq.priors import Prior
from hvq.priors.guidance import num_classes, vector_size
from hvq.priors.likelihood import nats_per_code
from hvq.storage import Hierarchy, RunFolder, encoder_hash

_ABOUT_PRIORS = (
    "nats per code{given}. held_out_nats: of held-out codes; train_nats: of as many training images, spread over all "
    "of them, without augmentation and drop-out, far fewer where a prior over-fits; unigram_entropy: what a model "
    "reaches that knows the frequencies of the held-out codes alone{without}; log_codebook_size: log K, one that takes "
    "all codes for equally likely"
)
_ABOUT_BITS = (
    "bits of one image's codes, of all levels, those of padding included, without which it cannot be decoded. raw: "
    "log2 K for each code"
)


def measure_priors(config: RunConfig, run: RunFolder, hierarchy: Hierarchy, reduction: Reduction) -> Measured:
    """Nats per code of each prior's very weights, on held-out codes and on as many of training images.

    Beside them stands what is reached without a prior: the entropy of the held-out codes' frequencies, and log K.
    """
    held_out, training = CodeFolder(run.codes, "validation"), CodeFolder(run.codes, "train")
    for codes in (held_out, training):
        codes.require_encoder(encoder_hash(hierarchy.autoencoder))
    # The first rows are the images as they are; augmented ones come later.
    seen = Subset(training, spread_rows(training.num_images, len(held_out)))
    priors: Numbers = {}
    left_out: dict[str, str] = {}
    for name, prior in hierarchy.priors.items():
        if reason := _why_no_nats(prior, held_out, training):
            left_out[f"priors.{name}"] = reason
            continue
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
    given = _given_the_class(hierarchy)
    about = _ABOUT_PRIORS.format(given=given, without=", without the class" if given else "")
    return Measured({"priors": priors}, {"priors": about, **left_out})


def _why_no_nats(prior: Prior, *codes: CodeFolder) -> str:
    """Why a prior cannot be measured on codes; empty where it can."""
    wanted, found = vector_size(prior), {folder.vector_size for folder in codes}
    if not wanted or found == {wanted}:
        return ""
    return (
        f"left out, since the prior is given a vector of {wanted} numbers for each image, and the codes have "
        f"{' and '.join(str(size) if size else 'none' for size in sorted(found))}; extract them with data.vectors"
    )


def measure_bits(hierarchy: Hierarchy, priors: Numbers) -> Measured:
    """Bits of an image's codes, raw and under the priors.

    Args:
        hierarchy: whose levels.
        priors: `held_out_nats` of the levels that have a prior; others count log K, equation (7).
    """
    raw, under_priors = 0.0, 0.0
    for name, quantizer in hierarchy.autoencoder.quantizers.items():
        codes = math.prod(level_code_shape(hierarchy, name))
        raw += codes * math.log2(quantizer.codebook_size)
        nats = priors[name]["held_out_nats"] if name in priors else math.log(quantizer.codebook_size)
        under_priors += codes * nats / math.log(2)
    without = [name for name in hierarchy.autoencoder.level_names if name not in priors]
    texts = [_ABOUT_BITS]
    if priors:
        uniform = f"; of {', '.join(without)}, of which no prior is measured, log2 K" if without else ""
        given = _given_the_class(hierarchy)
        texts.append(f"priors: mean over held-out images of minus log2 of the codes' probability{given}{uniform}")
    numbers = {"raw": raw, "priors": under_priors if priors else None}
    return Measured({"bits_per_image": numbers}, {"bits_per_image": "; ".join(texts)})


def measure_likelihood(
    hierarchy: Hierarchy, pixel_pairs: Tensor, training: dict[str, Tensor], bits: Numbers, reduction: Reduction
) -> Measured:
    """Bits per dimension of the whole model, under each stated likelihood.

    Args:
        hierarchy: whose image size the held-out images have.
        pixel_pairs: of held-out images, as `PixelPairs` counts.
        training: `images` and `restored` of training images, which the scales are fitted on.
        bits: `bits_per_image` of `measure_bits`.
        reduction: over the processes.
    """
    pairs = PixelPairs().to(pixel_pairs.device)
    shares = (training[what][reduction.rank :: reduction.size].split(256) for what in ("images", "restored"))
    for images, restored in zip(*shares, strict=True):
        pairs.update(images.to(pixel_pairs.device), restored.to(pixel_pairs.device))
    fitted_on = pairs.compute()
    dimensions = hierarchy.channels * math.prod(hierarchy.image_size)
    under_priors = bits["priors"] is not None
    numbers: Numbers = {}
    for kind, likelihood in LIKELIHOODS.items():
        found = bits_per_dimension(
            pixel_pairs,
            fitted_on=fitted_on,
            likelihood=likelihood,
            code_bits=bits["priors"] if under_priors else bits["raw"],
            dimensions=dimensions,
        )
        numbers[kind] = {
            "bits_per_dimension": found.total,
            "reconstruction_bits": found.reconstruction,
            "code_bits": found.codes,
            "scale": found.scale,
        }
    codes = f"under the priors{_given_the_class(hierarchy)}" if under_priors else "under the uniform prior, log2 K each"
    about = (
        "upper bound on bits per pixel and channel of held-out images, equation (6): reconstruction_bits, -log2 p(x | "
        f"z), plus code_bits, -log2 p(z) {codes}. p(x | z) is a Gaussian or a logistic distribution around the "
        "reconstruction, rounded to 256 values, integrated over the bin of 1/255 around each value, the edge bins with "
        "their tails. Its one scale, for pixels in [0, 1], is the Gaussian's standard deviation, and that at which "
        f"{len(training['images'])} training images are most probable given their reconstructions"
    )
    return Measured({"likelihood": numbers}, {"likelihood": about})


def _given_the_class(hierarchy: Hierarchy) -> str:
    """What the nats and bits of priors that know classes are given, in words; empty of those that know none."""
    told = ["the class of each image that has one"] * any(map(num_classes, hierarchy.priors.values()))
    told += ["its vector"] * (hierarchy.vector_size > 0)
    return f" given {' and '.join(told)}, whose own bits are not counted" if told else ""
