"""The report of a run: one HTML page that opens from disk, with every number and picture in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from hvq.evaluation.plots import require_matplotlib
from hvq.evaluation.report_tables import (
    GENERATION_COLUMNS,
    LEVEL_COLUMNS,
    LIKELIHOOD_COLUMNS,
    PRIOR_COLUMNS,
    RECONSTRUCTION_COLUMNS,
    REJECTION_COLUMNS,
    SCORE_ROWS,
    TOGETHER_COLUMNS,
    Bar,
    Table,
    bars,
    bits_texts,
    cards,
    duration,
    generation_rows,
    percent,
    reconstruction_rows,
    table,
)
from hvq.extras import require_package
from hvq.files import write_file

Picture = Image.Image | Path

RECONSTRUCTIONS, SAMPLES, USAGE, REJECTION = "reconstructions", "samples", "usage", "rejection"
CURVES = "curves."
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
TOGETHER_NOTE = (
    "Nats that a code tells of its neighbour, or of the finer codes that it covers, beyond what frequencies tell: what "
    "there is for a prior to learn from that one partner alone."
)
LIKELIHOOD_NOTE = "An upper bound, equation (6): bits of the codes, and bits of the image given its codes."
REJECTION_NOTE = "Keeping the samples that a classifier is surest of trades diversity (recall) for quality (precision)."


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


def require_report_packages() -> None:
    """Refuse to begin what ends with a report that could not be written.

    Raises:
        ConfigurationError: where a package that reports take is not installed.
    """
    require_matplotlib()
    _jinja2()


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
        metrics: what `metrics.json` holds: `reconstruction`, `levels.<name>`, `cooccurrence.<pair>`, `priors.<name>`,
            `bits_per_image`, `likelihood.<kind>`, `classification_accuracy_score`, `generation`, `rejection.<share>`,
            `seconds`, and texts under `about`; any of them may be missing.
        pictures: Pillow images or PNG files by name: "reconstructions", "samples", "usage", "rejection",
            "curves.<stage>"; others get a section at the end.
        level_names: the levels, coarse to fine; the order of tables.
        summary: one sentence under the title.
        notes: small print by picture name, such as what stands in for absent levels under "reconstructions".
        facts: what was run on what, by name.

    Returns:
        The path of the page.

    Raises:
        ConfigurationError: where the package jinja2 is not installed.
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
        cards=cards(metrics),
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
    jinja2 = _jinja2()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(**values)


def _jinja2() -> Any:
    return require_package("jinja2", what="reports are written with jinja2", extra="report")


# --- pictures -------------------------------------------------------------------------------------------------------


def _png(picture: Picture) -> bytes:
    if isinstance(picture, Path):
        return picture.read_bytes()
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _figure(name: str, png: bytes) -> Figure:
    width, height = Image.open(io.BytesIO(png)).size
    plot = name in (USAGE, REJECTION) or name.startswith(CURVES)
    # Plots are drawn at 160 dots per inch; a page has 96, and shows them at about their drawn size.
    scale = 0.7 if plot else 1.0
    data = base64.b64encode(png).decode("ascii")
    return Figure(_words(name), "plot" if plot else "grid", round(width * scale), round(height * scale), data)


def _sections(
    metrics: Mapping[str, Any],
    figures: Mapping[str, Figure],
    level_names: Sequence[str],
    notes: Mapping[str, str],
    facts: Mapping[str, str],
) -> list[Section]:
    pictures = partial(_pictures, figures, notes)
    score = metrics.get("classification_accuracy_score", {})
    reconstruction = reconstruction_rows(metrics.get("reconstruction", {}))
    generation = generation_rows(metrics.get("generation", {}))
    extractor = metrics.get("generation", {}).get("extractor")
    together, likelihood, rejection = (metrics.get(group, {}) for group in ("cooccurrence", "likelihood", "rejection"))
    seconds = {name: value for name, value in metrics.get("seconds", {}).items() if name != "total"}
    curves = [name for name in figures if name.startswith(CURVES)]
    others = [name for name in figures if name not in (RECONSTRUCTIONS, SAMPLES, USAGE, REJECTION, *curves)]
    scores = {text: score[key] for key, text in SCORE_ROWS.items() if score.get(key) is not None}
    sections = [
        pictures("Reconstructions, level by level", RECONSTRUCTIONS),
        Section("Reconstruction", table=table("number", reconstruction, list(reconstruction), RECONSTRUCTION_COLUMNS)),
        pictures("Samples", SAMPLES),
        Section("Levels", table=table("level", metrics.get("levels", {}), level_names, LEVEL_COLUMNS)),
        pictures("How the codebooks are used", USAGE, note=USAGE_NOTE),
        Section(
            "Codes that occur together",
            table=table("codes", together, list(together), TOGETHER_COLUMNS),
            notes=[TOGETHER_NOTE],
        ),
        Section(
            "Priors",
            table=table("level", metrics.get("priors", {}), level_names, PRIOR_COLUMNS),
            notes=[PRIOR_NOTE],
        ),
        Section(
            "Likelihood",
            texts=bits_texts(metrics.get("bits_per_image", {})),
            table=table("likelihood", likelihood, list(likelihood), LIKELIHOOD_COLUMNS),
            notes=[LIKELIHOOD_NOTE] if likelihood else [],
        ),
        Section(
            "Samples against real images",
            table=table("number", generation, list(generation), GENERATION_COLUMNS),
            notes=_noted(f"Features: {extractor}." if extractor else ""),
        ),
        Section("Classification accuracy score", bars=bars(scores, percent, longest=1.0), notes=[SCORE_NOTE]),
        Section(
            "Rejection sampling",
            table=table("share", rejection, list(rejection), REJECTION_COLUMNS),
            figures=[figures[REJECTION]] if REJECTION in figures else [],
            notes=[REJECTION_NOTE],
        ),
        pictures("Training", *curves),
        *(pictures(_words(name).capitalize(), name) for name in others),
        Section("Time", bars=bars({_words(name): value for name, value in seconds.items()}, duration)),
        Section("What the numbers mean", definitions=_flattened(metrics.get("about", {}))),
        Section("This run", definitions=list(facts.items())),
    ]
    return [section for section in sections if section.has_content]


def _pictures(
    figures: Mapping[str, Figure], notes: Mapping[str, str], title: str, *names: str, note: str = ""
) -> Section:
    present = [figures[name] for name in names if name in figures]
    return Section(title, figures=present, notes=_noted(note, *(notes.get(name, "") for name in names)))


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
