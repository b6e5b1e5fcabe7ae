"""The report of a run: one HTML page that opens from disk, with every number and picture in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from hvq.files import write_file

Picture = Image.Image | Path
Format = Callable[[Any], str]

RECONSTRUCTIONS, SAMPLES, USAGE, CURVES = "reconstructions", "samples", "usage", "curves."
"""Names of the pictures that have a section of their own; curves are named `curves.<stage>`."""

USAGE_NOTE = "Codes are sorted by how often they occur; the dashed line is equal use of all of them."
PRIOR_NOTE = (
    "A prior below the unigram entropy has learned structure: no model that ignores position, neighbours and class "
    "can code the held-out codes in fewer nats than that. One far below on training images alone has over-fitted."
)
SCORE_NOTE = (
    "Accuracy on real, held-out images of the same small classifier, trained for the same number of steps on images "
    "of each source."
)


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


@dataclass(frozen=True)
class Figure:
    """A PNG as base64, its size on the page in pixels, and what it shows (`grid` or `plot`)."""

    alt: str
    kind: str
    width: int
    height: int
    data: str


@dataclass(frozen=True)
class Section:
    """One part of the page; parts without content are left out."""

    title: str
    texts: Sequence[str] = ()
    table: Table | None = None
    figures: Sequence[Figure] = ()
    bars: Sequence[Bar] = ()
    definitions: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default=())

    @property
    def has_content(self) -> bool:
        """Whether there is more than a title and notes."""
        rows = self.table is not None and bool(self.table.rows)
        return rows or any((self.texts, self.figures, self.bars, self.definitions))


def write_report(
    run_folder: Path,
    *,
    title: str,
    metrics: Mapping[str, Any],
    pictures: Mapping[str, Picture],
    level_names: Sequence[str],
    summary: str = "",
    notes: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.html`, self-contained, and the pictures as PNG files under `pictures/`.

    Sections whose numbers or pictures are missing are left out, so that a run of the autoencoder alone has a report
    too.

    Args:
        run_folder: the run's folder.
        title: heading of the page.
        metrics: what `metrics.json` holds: `reconstruction`, `levels.<name>`, `priors.<name>`,
            `classification_accuracy_score`, `seconds`, and texts under `about`; any of them may be missing.
        pictures: Pillow images or PNG files by name: "reconstructions", "samples", "usage", "curves.<stage>"; others
            get a section at the end.
        level_names: the levels, coarse to fine; the order of tables.
        summary: one sentence under the title.
        notes: small print by picture name, such as what stands in for absent levels under "reconstructions".
        facts: what was run on what, by name.

    Returns:
        The path of the page.
    """
    figures = {}
    for name, picture in pictures.items():
        png = _png(picture)
        path = run_folder / "pictures" / f"{name}.png"
        _write(path, png)
        figures[name] = _figure(name, png)
    page = _render(
        title=title,
        summary=summary,
        cards=_cards(metrics),
        sections=_sections(metrics, figures, level_names, notes or {}, facts or {}),
    )
    report = run_folder / "report.html"
    _write(report, page.encode("utf-8"))
    return report


def _write(path: Path, content: bytes) -> None:
    def write(partial: Path) -> None:
        partial.write_bytes(content)

    write_file(path, write)


def _render(**values: Any) -> str:
    template = resources.files("hvq.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**values)


# --- pictures -------------------------------------------------------------------------------------------------------


def _png(picture: Picture) -> bytes:
    if isinstance(picture, Path):
        return picture.read_bytes()
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _figure(name: str, png: bytes) -> Figure:
    width, height = Image.open(io.BytesIO(png)).size
    plot = name == USAGE or name.startswith(CURVES)
    # Plots are drawn at 160 dots per inch; a page has 96, and shows them at about their drawn size.
    scale = 0.7 if plot else 1.0
    data = base64.b64encode(png).decode("ascii")
    return Figure(_words(name), "plot" if plot else "grid", round(width * scale), round(height * scale), data)


# --- numbers --------------------------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    return f"{100.0 * value:.1f} %"


def _error(value: float) -> str:
    return f"{value:.3g}"


def _decibel(value: float) -> str:
    return f"{value:.2f} dB"


def _three_digits(value: float) -> str:
    return f"{value:.3f}"


def _one_digit(value: float) -> str:
    return f"{value:.1f}"


def _duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> _duration(7.25), _duration(249.6), _duration(7300)
    ('7.2 s', '4 min 10 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


CARDS: tuple[tuple[str, str, str, Format], ...] = (
    ("reconstruction", "psnr", "PSNR of reconstructions", _decibel),
    ("reconstruction", "ssim", "SSIM", _three_digits),
    ("reconstruction", "mse", "mean squared error", _error),
    ("classification_accuracy_score", "generated", "classification accuracy score", _percent),
    ("classification_accuracy_score", "copies", "samples that are copies", _percent),
    ("seconds", "total", "time in all", _duration),
)
LEVEL_COLUMNS: dict[str, tuple[str, Format]] = {
    "usage": ("codes used", _percent),
    "perplexity": ("perplexity", _one_digit),
    "absent_mse": ("error without it (MSE)", _error),
}
PRIOR_COLUMNS: dict[str, tuple[str, Format]] = {
    "held_out_nats": ("held out, nats per code", _three_digits),
    "train_nats": ("training images", _three_digits),
    "unigram_entropy": ("unigram entropy", _three_digits),
    "log_codebook_size": ("log K", _three_digits),
}
SCORE_ROWS = {"real": "real images", "reconstructed": "reconstructions", "generated": "samples"}


def _cards(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(text, metrics.get(group, {}).get(key), form) for group, key, text, form in CARDS]
    return [(text, form(value)) for text, value, form in found if value is not None]


def _table(
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


def _bars(values: Mapping[str, float], form: Format, longest: float | None = None) -> list[Bar]:
    scale = longest or max(values.values(), default=0.0) or 1.0
    return [Bar(name, form(value), round(100.0 * value / scale, 2)) for name, value in values.items()]


def _sections(
    metrics: Mapping[str, Any],
    figures: Mapping[str, Figure],
    level_names: Sequence[str],
    notes: Mapping[str, str],
    facts: Mapping[str, str],
) -> list[Section]:
    def pictures(title: str, *names: str, note: str = "") -> Section:
        present = [figures[name] for name in names if name in figures]
        return Section(title, figures=present, notes=_noted(note, *(notes.get(name, "") for name in names)))

    score = metrics.get("classification_accuracy_score", {})
    seconds = {name: value for name, value in metrics.get("seconds", {}).items() if name != "total"}
    curves = [name for name in figures if name.startswith(CURVES)]
    others = [name for name in figures if name not in (RECONSTRUCTIONS, SAMPLES, USAGE, *curves)]
    scores = {text: score[key] for key, text in SCORE_ROWS.items() if score.get(key) is not None}
    sections = [
        pictures("Reconstructions, level by level", RECONSTRUCTIONS),
        pictures("Samples", SAMPLES),
        Section("Levels", table=_table("level", metrics.get("levels", {}), level_names, LEVEL_COLUMNS)),
        pictures("How the codebooks are used", USAGE, note=USAGE_NOTE),
        Section(
            "Priors",
            table=_table("level", metrics.get("priors", {}), level_names, PRIOR_COLUMNS),
            notes=[PRIOR_NOTE],
        ),
        Section("Classification accuracy score", bars=_bars(scores, _percent, longest=1.0), notes=[SCORE_NOTE]),
        pictures("Training", *curves),
        *(pictures(_words(name).capitalize(), name) for name in others),
        Section("Time", bars=_bars({_words(name): value for name, value in seconds.items()}, _duration)),
        Section("What the numbers mean", definitions=_flattened(metrics.get("about", {}))),
        Section("This run", definitions=list(facts.items())),
    ]
    return [section for section in sections if section.has_content]


def _noted(*texts: str) -> list[str]:
    return [text for text in texts if text]


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ", ")


def _flattened(texts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested texts under dotted names.

    >>> _flattened({"split": "validation", "levels": {"usage": "share of codes that occur"}})
    [('split', 'validation'), ('levels.usage', 'share of codes that occur')]
    """
    pairs: list[tuple[str, str]] = []
    for name, value in texts.items():
        if isinstance(value, Mapping):
            pairs += _flattened(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", str(value)))
    return pairs
