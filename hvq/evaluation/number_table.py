"""The numbers of a run as one table for people: value, name, and what it means in a few words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LEFT_OUT = "left out"
"""How texts under `about` begin that say why a number is not there."""

# By path; "*" stands for any one name, and for what comes before an underscore.
MEANINGS: dict[tuple[str, ...], str] = {
    ("reconstruction", "mse"): "mean squared error of held-out images, pixels in [0, 1]",
    ("reconstruction", "psnr"): "peak signal-to-noise ratio, dB; higher is better",
    ("reconstruction", "ssim"): "structural similarity; 1 is identical",
    ("reconstruction", "ms_ssim"): "structural similarity at five scales; 1 is identical",
    ("reconstruction", "lpips"): "perceptual distance; 0 is identical",
    ("reconstruction", "*_rfid"): "Fréchet distance of reconstructions to their images; lower is better",
    ("levels", "*", "usage"): "share of the level's codes that occur",
    ("levels", "*", "perplexity"): "how many codes, equally often used, would say as much",
    ("levels", "*", "absent_mse"): "mean squared error without the level",
    ("cooccurrence", "*", "mutual_information"): "nats that a code and its partner tell of each other",
    ("cooccurrence", "*", "corrected"): "the same, less what chance adds",
    ("cooccurrence", "*", "pairs"): "pairs that were counted",
    ("priors", "*", "held_out_nats"): "nats per code of held-out images under the prior",
    ("priors", "*", "train_nats"): "the same of training images",
    ("priors", "*", "unigram_entropy"): "nats per code when only frequencies are known",
    ("priors", "*", "log_codebook_size"): "nats per code when nothing is known",
    ("bits_per_image", "raw"): "bits of an image's codes, log2 K each",
    ("bits_per_image", "priors"): "bits of an image's codes under the priors",
    ("likelihood", "*", "bits_per_dimension"): "bits per pixel and channel of the whole model; lower is better",
    ("likelihood", "*", "reconstruction_bits"): "of these, for the image given its codes",
    ("likelihood", "*", "code_bits"): "of these, for the codes",
    ("likelihood", "*", "scale"): "of the likelihood, fitted on training images",
    ("classification_accuracy_score", "generated"): "accuracy on real images after learning from samples",
    ("classification_accuracy_score", "reconstructed"): "the same after learning from reconstructions",
    ("classification_accuracy_score", "real"): "the same after learning from real images",
    ("classification_accuracy_score", "*_top5"): "the same, right among five guesses",
    ("classification_accuracy_score", "copies"): "share of samples that are copies of training images",
    ("classification_accuracy_score", "copies_by_codes"): "share of samples with all codes of a training image",
    ("generation", "*_fid"): "Fréchet distance of samples to training images; lower is better",
    ("generation", "*_kid"): "kernel distance of samples to training images; 0 is alike",
    ("generation", "*_kid_deviation"): "its standard deviation over subsets",
    ("generation", "*_score"): "Inception score of samples; higher is better",
    ("generation", "*_precision"): "share of samples that look like training images",
    ("generation", "*_recall"): "share of training images that samples cover",
    ("generation", "*_held_out"): "the same of held-out images in place of samples",
    ("rejection", "*", "kept"): "samples kept of that share, the surest of each class",
    ("rejection", "*", "precision"): "share of these that look like training images",
    ("rejection", "*", "recall"): "share of training images that these cover",
    ("rejection", "*", "accuracy"): "share of these that another classifier takes for their class",
    ("seconds", "*"): "time that the stage took",
}


def number_table(metrics: Mapping[str, Any]) -> list[str]:
    """The lines of the table: all numbers of `metrics.json`, and those that are left out, with the reason.

    >>> for line in number_table({"reconstruction": {"psnr": 34.5}, "about": {"reconstruction.lpips": "left out: x"}}):
    ...     print(line)
    value  name                  meaning
     34.5  reconstruction.psnr   peak signal-to-noise ratio, dB; higher is better
        -  reconstruction.lpips  left out: x
    """
    about = {name: text for name, text in metrics.get("about", {}).items() if isinstance(text, str)}
    rows = number_rows(metrics) + [("-", name, text) for name, text in about.items() if text.startswith(LEFT_OUT)]
    lines = [("value", "name", "meaning"), *rows]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    table = [f"{value:>{widths[0]}}  {name:<{widths[1]}}  {text}".rstrip() for value, name, text in lines]
    extractor = metrics.get("generation", {}).get("extractor")
    return [*table, f"features: {extractor}"] if extractor else table


def number_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Value, name and meaning of all numbers of `metrics.json`."""
    return [(f"{value:.5g}", ".".join(path), meaning(path)) for path, value in _numbers(metrics, ())]


def meaning(path: tuple[str, ...]) -> str:
    """What the number at a path means, in a few words; nothing of one that is not known.

    >>> meaning(("levels", "top", "usage"))
    "share of the level's codes that occur"
    >>> meaning(("generation", "classifier_fid_held_out"))
    'the same of held-out images in place of samples'
    """
    return next((text for pattern, text in MEANINGS.items() if _matches(path, pattern)), "")


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    return len(path) == len(pattern) and all(
        name.endswith(part[1:]) if part.startswith("*") else name == part
        for name, part in zip(path, pattern, strict=True)
    )


def _numbers(metrics: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int | float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, (*above, name))
        elif isinstance(value, int | float):
            yield (*above, name), value
