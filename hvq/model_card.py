"""The README.md of a model's folder, as the hub shows it: what the model is, its numbers, and how to load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from hvq.files import write_file
from hvq.model_folders import CARD, PICTURES

# The last line of a card; one without it is a person's own, and stays.
_MARK = "<!-- Written by hvq, and written anew with the model unless this line is removed. -->"
UNKNOWN_LICENSE = "unknown"


@dataclass(frozen=True)
class ModelCard:
    """What a card says beyond what the model itself tells.

    Attributes:
        title: its heading; the kind of model by default.
        summary: a sentence or two under it.
        license: of the weights, as the hub abbreviates it ("mit", "cc-by-4.0"); those of the data may bind them.
        data: what it was trained on, in a sentence.
        datasets: names of data sets on the hub among that.
        numbers: rows of name, value and meaning.
        pictures: Pillow images or PNG files by caption, in order.
        tags: by which the hub finds it.
    """

    title: str = ""
    summary: str = ""
    license: str = UNKNOWN_LICENSE
    data: str = ""
    datasets: Sequence[str] = ()
    numbers: Sequence[tuple[str, str, str]] = ()
    pictures: Mapping[str, Image.Image | Path] = field(default_factory=dict)
    tags: Sequence[str] = ("hvq", "vq-vae", "vector-quantization")

    def with_default(self, *, title: str, summary: str = "") -> ModelCard:
        """The same card, with a title and a summary where it has none of its own."""
        return replace(self, title=self.title or title, summary=self.summary or summary)


def write_card(
    folder: Path, card: ModelCard, *, configuration: Mapping[str, Any], usage: str, task: str = "", earlier: Path
) -> None:
    """Write README.md, and the card's pictures under `pictures/`.

    Args:
        folder: to write to.
        card: what it says.
        configuration: shown as JSON.
        usage: Python that loads the model and does something with it.
        task: of the hub's list, such as "unconditional-image-generation"; empty for none.
        earlier: the folder that this one replaces; a README.md there that a person wrote is kept.
    """
    names = {caption: f"{PICTURES}/{_file_name(caption)}.png" for caption in card.pictures}
    for caption, picture in card.pictures.items():
        _write_picture(folder / names[caption], picture)
    text = _own_words(earlier) or _render(card, names, configuration, usage, task)

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_file(folder / CARD, write)


def _own_words(folder: Path) -> str:
    """A card that a person wrote, or took over by removing the mark; empty where there is none."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "" if _MARK in text else text


def _file_name(caption: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in caption.lower()).strip("-")


def _write_picture(path: Path, picture: Image.Image | Path) -> None:
    def write(partial: Path) -> None:
        if isinstance(picture, Path):
            shutil.copyfile(picture, partial)
        else:
            picture.save(partial, format="PNG", optimize=True)

    write_file(path, write)


def _render(
    card: ModelCard, pictures: Mapping[str, str], configuration: Mapping[str, Any], usage: str, task: str
) -> str:
    shown = [f"![{caption}]({path})" for caption, path in pictures.items()]
    sections = [
        f"# {card.title}",
        card.summary,
        *shown,
        f"## Use\n\n```python\n{usage.strip()}\n```",
        f"## Data\n\n{card.data}" if card.data else "",
        _numbers(card.numbers),
        f"## Configuration\n\n```json\n{json.dumps(configuration, indent=2)}\n```",
        f"## Licence\n\n{_license(card.license)}",
        _MARK,
    ]
    return f"---\n{_front_matter(card, task)}---\n\n" + "\n\n".join(part for part in sections if part) + "\n"


def _front_matter(card: ModelCard, task: str) -> str:
    fields: dict[str, Any] = {"license": card.license, "library_name": "hvq", "tags": list(card.tags)}
    if task:
        fields["pipeline_tag"] = task
    if card.datasets:
        fields["datasets"] = list(card.datasets)
    return yaml.safe_dump(fields, sort_keys=False)


def _numbers(rows: Sequence[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = [f"| `{name}` | {value} | {meaning.replace('|', '/')} |" for name, value, meaning in rows]
    return "\n".join(["## Numbers\n", "| number | value | what it is |", "| --- | ---: | --- |", *lines])


def _license(name: str) -> str:
    if name == UNKNOWN_LICENSE:
        return "Nobody has said under which licence these weights may be used; ask who published them."
    return f"{name}, of the weights. The data that they were trained on may have terms of its own."
