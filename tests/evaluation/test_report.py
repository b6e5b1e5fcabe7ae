"""The report: whole, self-contained, and only with the sections whose numbers are there."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hvq.evaluation.report import write_report

FULL: dict[str, Any] = {
    "reconstruction": {"mse": 0.000385, "psnr": 34.313, "ssim": None},
    "levels": {
        "bottom": {"usage": 0.992, "perplexity": 372.44, "absent_mse": 0.0112, "absent_stand_in": "learned vector"},
        "top": {"usage": 1.0, "perplexity": 98.2, "absent_mse": 0.0481},
    },
    "priors": {
        "top": {"held_out_nats": 2.831, "train_nats": 2.65, "unigram_entropy": 4.402, "log_codebook_size": 4.8520303}
    },
    "cooccurrence": {"top-bottom": {"mutual_information": 1.20567, "corrected": 1.1036, "pairs": 23040}},
    "bits_per_image": {"raw": 533.4376, "priors": 196.8158},
    "likelihood": {
        "gaussian": {
            "bits_per_dimension": 3.55936,
            "reconstruction_bits": 3.36716,
            "code_bits": 0.1922,
            "scale": 0.01914,
        },
    },
    "generation": {
        "extractor": "classifier 3ab <1>",
        "classifier_fid": 2.2914,
        "classifier_recall": 0.8556,
        "classifier_score": None,
        "classifier_fid_held_out": 8.413,
    },
    "rejection": {
        "0.5": {"kept": 1000, "precision": 0.92, "recall": 0.707, "accuracy": 1.0},
        "0.125": {"kept": 3, "precision": None, "recall": None, "accuracy": 0.985},
    },
    "classification_accuracy_score": {
        "generated": 0.9417,
        "generated_top5": 0.997,
        "reconstructed": 0.9806,
        "real": 0.9889,
        "copies": 0.004,
    },
    "seconds": {"total": 281.0, "autoencoder": 141.0, "prior.top": 7.25},
    "about": {"split": "360 held-out images <1x32x32>", "reconstruction": {"psnr": "in dB"}},
}

NAMES = ("reconstructions", "samples", "usage", "rejection", "curves.autoencoder", "extra")


class _Page(HTMLParser):
    """Headings, rows of tables, pictures and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self._open = ""
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        values = dict(attrs)
        self.addresses += [value for key, value in attrs if key in ("src", "href") and value]
        if tag == "tr":
            self.rows.append([])
        elif tag == "img":
            self.images.append(values)
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("h1", "h2"):
            self.headings.append(data)
        elif self._open in ("td", "th"):
            self.rows[-1][-1] += data


def _picture(width: int = 13) -> Image.Image:
    return Image.new("RGBA", (width, 7), (200, 30, 60, 255))


def _written(folder: Path, **options: Any) -> _Page:
    arguments: dict[str, Any] = {"title": "digits", "metrics": {}, "pictures": {}, "level_names": ["top", "bottom"]}
    return _Page(write_report(folder, **(arguments | options)))


def test_a_full_run_has_all_sections_and_numbers(tmp_path: Path) -> None:
    pictures = {name: _picture() for name in NAMES}
    page = _written(tmp_path, metrics=FULL, pictures=pictures, facts={"torch": "2.13.0"})
    assert page.headings == [
        "digits",
        "Reconstructions, level by level",
        "Reconstruction",
        "Samples",
        "Levels",
        "How the codebooks are used",
        "Codes that occur together",
        "Priors",
        "Likelihood",
        "Samples against real images",
        "Classification accuracy score",
        "Rejection sampling",
        "Training",
        "Extra",
        "Time",
        "What the numbers mean",
        "This run",
    ]
    assert len(page.images) == len(NAMES)
    for row in (
        ["level", "codes used", "perplexity", "error without it (MSE)"],
        ["top", "100.0 %", "98.2", "0.0481"],
        ["bottom", "99.2 %", "372.4", "0.0112"],
        ["level", "held out, nats per code", "training images", "unigram entropy", "log K"],
        ["top", "2.831", "2.650", "4.402", "4.852"],
        ["samples", "94.2 %", ""],
        ["samples, top 5", "99.7 %", ""],
        ["psnr", "34.31", "peak signal-to-noise ratio, dB; higher is better"],
        ["codes", "mutual information, nats", "less chance", "pairs"],
        ["top-bottom", "1.206", "1.104", "23040"],
        ["likelihood", "bits per dimension", "of the image", "of its codes", "scale, pixels in [0, 1]"],
        ["gaussian", "3.559", "3.367", "0.192", "0.0191"],
        ["number", "samples", "held-out images", "meaning"],
        ["classifier_fid", "2.291", "8.413", "Fréchet distance of samples to training images; lower is better"],
        ["classifier_recall", "0.8556", "", "share of training images that samples cover"],
        ["share", "kept", "precision", "recall", "accuracy"],
        ["0.5", "1000", "92.0 %", "70.7 %", "100.0 %"],
        ["0.125", "3", "", "", "98.5 %"],
        ["prior, top", "7.2 s", ""],
    ):
        assert row in page.rows
    for text in (
        "34.31 dB",
        "0.000385",
        "0.4 %",
        "533.4 bits as they are, and 196.8 bits",
        "Features: classifier 3ab &lt;1&gt;.",
        "4 min 41 s",
        "reconstruction.psnr",
        "2.13.0",
    ):
        assert text in page.text


def test_an_autoencoder_alone_has_no_sections_on_samples(tmp_path: Path) -> None:
    metrics = {key: FULL[key] for key in ("reconstruction", "levels")}
    page = _written(tmp_path, metrics=metrics, pictures={"reconstructions": _picture()})
    assert page.headings == ["digits", "Reconstructions, level by level", "Reconstruction", "Levels"]
    assert _written(tmp_path).headings == ["digits"]


def test_levels_stand_coarse_to_fine_whatever_the_order_of_the_numbers(tmp_path: Path) -> None:
    rows = _written(tmp_path, metrics={"levels": FULL["levels"]}).rows
    assert [row[0] for row in rows] == ["level", "top", "bottom"]


def test_a_number_that_some_levels_lack_leaves_its_cell_empty(tmp_path: Path) -> None:
    levels = {"top": {"usage": 1.0}, "bottom": {"usage": 0.5, "absent_mse": 0.25}}
    rows = _written(tmp_path, metrics={"levels": levels}).rows
    assert rows == [
        ["level", "codes used", "error without it (MSE)"],
        ["top", "100.0 %", ""],
        ["bottom", "50.0 %", "0.25"],
    ]


def test_pictures_are_inside_the_page_and_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "given.png"
    _picture(17).save(file)
    page = _written(tmp_path, pictures={"samples": file, "curves.autoencoder": _picture(13)})
    widths = []
    for image in page.images:
        prefix, _, data = str(image["src"]).partition(",")
        assert prefix == "data:image/png;base64"
        widths.append(Image.open(io.BytesIO(base64.b64decode(data))).width)
    assert widths == [17, 13]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["curves.autoencoder.png", "samples.png"]
    assert (tmp_path / "pictures" / "samples.png").read_bytes() == file.read_bytes()


def test_the_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    page = _written(tmp_path, metrics=FULL, pictures={"usage": _picture()})
    assert all(address.startswith("data:") for address in page.addresses)
    assert not any(text in page.text for text in ("http", "@import", "url(", "<script"))


def test_texts_are_escaped(tmp_path: Path) -> None:
    page = _written(tmp_path, title="<b>bold</b>", metrics=FULL, notes={"usage": "<i>"}, pictures={"usage": _picture()})
    assert page.headings[0] == "<b>bold</b>"
    assert "&lt;1x32x32&gt;" in page.text
    assert "<i>" not in page.text


def test_notes_stand_with_their_picture(tmp_path: Path) -> None:
    note = "top: learned vector"
    shown = _written(tmp_path, pictures={"reconstructions": _picture()}, notes={"reconstructions": note})
    assert note in shown.text
    assert note not in _written(tmp_path, pictures={"samples": _picture()}, notes={"reconstructions": note}).text


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    old = _written(tmp_path).text
    with pytest.raises(FileNotFoundError):
        _written(tmp_path, title="new", pictures={"samples": tmp_path / "missing.png"})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert not list(tmp_path.rglob("*.partial"))
