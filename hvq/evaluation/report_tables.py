"""Tables, bars and cards of the report: which numbers they show, under which names, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvq.evaluation.number_table import meaning

Format = Callable[[Any], str]


@dataclass(frozen=True)
class Table:
    """Column names, and rows whose cells are ready to print."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Bar:
    """A named amount, and the length of its bar in percent of the longest."""

    name: str
    value: str
    percent: float


def percent(value: float) -> str:
    return f"{100.0 * value:.1f} %"


def error(value: float) -> str:
    return f"{value:.3g}"


def decibel(value: float) -> str:
    return f"{value:.2f} dB"


def three_digits(value: float) -> str:
    return f"{value:.3f}"


def one_digit(value: float) -> str:
    return f"{value:.1f}"


def four_digits(value: float) -> str:
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(7.25), duration(249.6), duration(7300)
    ('7.2 s', '4 min 10 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


CARDS: tuple[tuple[str, str, str, Format], ...] = (
    ("reconstruction", "psnr", "PSNR of reconstructions", decibel),
    ("reconstruction", "ssim", "SSIM", three_digits),
    ("reconstruction", "mse", "mean squared error", error),
    ("classification_accuracy_score", "generated", "classification accuracy score", percent),
    ("classification_accuracy_score", "copies", "samples that are copies", percent),
    ("seconds", "total", "time in all", duration),
)
LEVEL_COLUMNS: dict[str, tuple[str, Format]] = {
    "usage": ("codes used", percent),
    "perplexity": ("perplexity", one_digit),
    "absent_mse": ("error without it (MSE)", error),
}
PRIOR_COLUMNS: dict[str, tuple[str, Format]] = {
    "held_out_nats": ("held out, nats per code", three_digits),
    "train_nats": ("training images", three_digits),
    "unigram_entropy": ("unigram entropy", three_digits),
    "log_codebook_size": ("log K", three_digits),
}
SCORE_ROWS = {
    "real": "real images",
    "real_top5": "real images, top 5",
    "reconstructed": "reconstructions",
    "reconstructed_top5": "reconstructions, top 5",
    "generated": "samples",
    "generated_top5": "samples, top 5",
}
TOGETHER_COLUMNS: dict[str, tuple[str, Format]] = {
    "mutual_information": ("mutual information, nats", three_digits),
    "corrected": ("less chance", three_digits),
    "pairs": ("pairs", str),
}
LIKELIHOOD_COLUMNS: dict[str, tuple[str, Format]] = {
    "bits_per_dimension": ("bits per dimension", three_digits),
    "reconstruction_bits": ("of the image", three_digits),
    "code_bits": ("of its codes", three_digits),
    "scale": ("scale, pixels in [0, 1]", error),
}
REJECTION_COLUMNS: dict[str, tuple[str, Format]] = {
    "kept": ("kept", str),
    "precision": ("precision", percent),
    "recall": ("recall", percent),
    "accuracy": ("accuracy", percent),
}
GENERATION_COLUMNS: dict[str, tuple[str, Format]] = {
    "samples": ("samples", four_digits),
    "held_out": ("held-out images", four_digits),
    "meaning": ("meaning", str),
}
RECONSTRUCTION_COLUMNS: dict[str, tuple[str, Format]] = {"value": ("value", four_digits), "meaning": ("meaning", str)}


def cards(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(text, metrics.get(group, {}).get(key), form) for group, key, text, form in CARDS]
    return [(text, form(value)) for text, value, form in found if value is not None]


def table(
    first: str, values: Mapping[str, Mapping[str, Any]], names: Sequence[str], columns: Mapping[str, tuple[str, Format]]
) -> Table:
    """One row per name that has values, one column per number that any of them has."""
    rows = {name: values[name] for name in names if name in values}
    shown = {key: column for key, column in columns.items() if any(row.get(key) is not None for row in rows.values())}
    cells = [
        [name, *("" if row.get(key) is None else form(row[key]) for key, (_, form) in shown.items())]
        for name, row in rows.items()
    ]
    return Table([first, *(text for text, _ in shown.values())], cells)


def reconstruction_rows(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each number that is there, with its meaning."""
    return {
        name: {"value": value, "meaning": meaning(("reconstruction", name))}
        for name, value in numbers.items()
        if isinstance(value, int | float)
    }


def generation_rows(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each number of samples that is there, beside that of held-out images, with its meaning."""
    return {
        name: {
            "samples": value,
            "held_out": numbers.get(f"{name}_held_out"),
            "meaning": meaning(("generation", name)),
        }
        for name, value in numbers.items()
        if isinstance(value, int | float) and not name.endswith("_held_out")
    }


def bits_texts(bits: Mapping[str, Any]) -> list[str]:
    """Bits of one image's codes, as a sentence."""
    if bits.get("raw") is None:
        return []
    under_priors = "" if bits.get("priors") is None else f", and {bits['priors']:.1f} bits under the priors"
    return [f"The codes of one image take {bits['raw']:.1f} bits as they are{under_priors}."]


def bars(values: Mapping[str, float], form: Format, longest: float | None = None) -> list[Bar]:
    scale = longest or max(values.values(), default=0.0) or 1.0
    return [Bar(name, form(value), round(100.0 * value / scale, 2)) for name, value in values.items()]
