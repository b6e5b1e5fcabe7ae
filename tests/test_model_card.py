"""Model cards say what the hub reads and what a person reads, and a person's own words stay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hvq.model_card import ModelCard, write_card

CARD = ModelCard(
    title="Digits",
    summary="Two levels.",
    license="cc-by-4.0",
    data="32x32 digits.",
    datasets=("owner/digits",),
    numbers=(("reconstruction.psnr", "34.5", "a ratio | dB"),),
    pictures={"Samples, of each class": Image.new("L", (5, 3), 7)},
)


def _written(folder: Path, card: ModelCard = CARD, earlier: Path = Path("none"), task: str = "") -> str:
    folder.mkdir(exist_ok=True)
    write_card(folder, card, configuration={"a": {"b": 1}}, usage="print(1)", task=task, earlier=earlier)
    return (folder / "README.md").read_text()


def test_the_hub_reads_the_front_matter(tmp_path: Path) -> None:
    front = yaml.safe_load(_written(tmp_path, task="unconditional-image-generation").split("---\n")[1])
    assert front == {
        "license": "cc-by-4.0",
        "library_name": "hvq",
        "tags": ["hvq", "vq-vae", "vector-quantization"],
        "pipeline_tag": "unconditional-image-generation",
        "datasets": ["owner/digits"],
    }
    plain = yaml.safe_load(_written(tmp_path, ModelCard(title="x")).split("---\n")[1])
    assert plain.keys() == {"license", "library_name", "tags"}
    assert plain["license"] == "unknown"


def test_the_library_of_the_hub_reads_it_too(tmp_path: Path) -> None:
    library = pytest.importorskip("huggingface_hub")
    read = library.ModelCard(_written(tmp_path))
    assert (read.data.license, read.data.library_name, read.data.datasets) == ("cc-by-4.0", "hvq", ["owner/digits"])


def test_a_person_reads_the_rest(tmp_path: Path) -> None:
    text = _written(tmp_path)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    assert titles == ["Digits", "Use", "Data", "Numbers", "Configuration", "Licence"]
    assert "| `reconstruction.psnr` | 34.5 | a ratio / dB |" in text
    assert "```python\nprint(1)\n```" in text
    assert '```json\n{\n  "a": {\n    "b": 1\n  }\n}\n```' in text
    assert "cc-by-4.0, of the weights" in text
    (picture,) = re.findall(r"!\[Samples, of each class\]\((.*)\)", text)
    assert Image.open(tmp_path / picture).size == (5, 3)


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    text = _written(tmp_path, ModelCard(title="x"))
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == ["Use", "Configuration", "Licence"]
    assert "Nobody has said under which licence" in text
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_persons_own_words_stay(tmp_path: Path, own: bool) -> None:
    generated = _written(tmp_path / "old")
    if own:
        (tmp_path / "old" / "README.md").write_text(generated[: generated.index("<!--")] + "My words.\n")
    again = _written(tmp_path / "new", ModelCard(title="Other"), earlier=tmp_path / "old")
    assert ("My words." in again, "# Other" in again) == (own, not own)
