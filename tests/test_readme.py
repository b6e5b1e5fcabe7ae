"""What the README says is run: its Python, on a run that its first command made (with fewer steps)."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from string import Template

import pytest

from hvq.files import write_file
from tests.runs import run_recipe

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "claims" / "README.md",
    ROOT / "docs" / "formulas.md",
    ROOT / "recipes" / "README.md",
    ROOT / "recipes" / "accelerate" / "README.md",
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEWER_STEPS = [
    "data.workers=0",
    "autoencoder_training.steps=3",
    "extraction.augmented_epochs=1",
    "priors.top.training.steps=2",
    "priors.bottom.training.steps=2",
    "sampling.samples_per_class=2",
    "evaluation.generated_per_class=3",
    "evaluation.classifier_steps=10",
    "evaluation.classifier_seeds=1",
]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which `recipes/quickstart.py` was run, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, str(ROOT / "recipes" / "quickstart.py"), *FEWER_STEPS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.split("\n")[2][:40])
def test_python_of_the_readme_runs_and_asserts(
    block: str, quickstart: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "assert " in block
    monkeypatch.chdir(quickstart[0])
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_loads_a_run_in_twenty_lines() -> None:
    block = next(block for block in python_blocks() if "from_pretrained" in block)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20


def test_quickstart_leaves_a_report_that_needs_no_network_and_all_numbers(quickstart: tuple[Path, str]) -> None:
    run = quickstart[0] / "runs" / "quickstart"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 5
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["reconstruction"].keys() >= {"mse", "psnr", "ssim"}
    for level in ("top", "bottom"):
        assert metrics["levels"][level].keys() >= {"usage", "perplexity", "absent_mse"}
        assert metrics["priors"][level].keys() >= {"held_out_nats", "unigram_entropy"}
    assert metrics["classification_accuracy_score"].keys() >= {"generated", "reconstructed", "real", "copies"}
    assert metrics["seconds"]["total"] > 0
    assert "1 process on cpu" in quickstart[1] or "1 process on cuda" in quickstart[1]


def _writes(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def test_the_commands_that_sample_work(quickstart: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quickstart[0])
    run = Path("runs/quickstart")
    left = (run / "samples" / "samples.safetensors").read_bytes()
    section = README[README.index("## Sampling") : README.index("## Quantizers")]
    commands = re.findall(r"^python recipes/sample.py \$run (.*?)(?:\s+#.*)?$", section, flags=re.MULTILINE)
    assert len(commands) == 4
    for words in commands:
        # As if a call had been ended before it had removed what it kept.
        if "--from-codes" in words:
            write_file(run / "checkpoints" / "samples" / "samples.safetensors", _writes(left))
        outcome = run_recipe("sample", "--run-dir", run, *shlex.split(words))
        assert (outcome.code, outcome.err) == (0, ""), words
    assert (run / "samples" / "samples.safetensors").read_bytes() == left


def _shell_lines() -> list[str]:
    """Commands of all pages that call a recipe, without comments, each on one line, its variables filled in."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            variables = dict(re.findall(r"^(\w+)=\"(.*?)\"$", block, flags=re.MULTILINE))
            for line in block.replace("\\\n", " ").splitlines():
                command = Template(line).safe_substitute(variables)
                if re.search(r"recipes/(?!examples/)\w+\.py", command):
                    lines.append(command)
        lines += re.findall(
            r"^\|.*`(python recipes/(?!examples/)\w+\.py [^`]+)`", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    return lines


@lru_cache
def _help_of(script: str) -> str:
    command = [sys.executable, str(ROOT / script), "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("line", _shell_lines())
def test_shell_lines_take_what_help_says(line: str) -> None:
    words = shlex.split(line, comments=True)
    script = next(word for word in words if word.startswith("recipes/"))
    words, text = words[words.index(script) + 1 :], _help_of(script)
    assert {word for word in words if word.startswith("--") and f"{word} " not in text.replace("\n", " ")} == set()
    named = re.compile(r"(autoencoder\.levels|priors|autoencoder_training\.reconstruction)\.\w+")
    fields = [named.sub(r"\1.NAME", word.split("=")[0]) for word in words if re.match(r"[a-z_.]+=", word)]
    known = re.sub(r"(autoencoder\.levels|priors|autoencoder_training\.reconstruction)\.<?\w+>?", r"\1.NAME", text)
    assert [field for field in fields if f"{field}=" not in known] == []


def test_every_recipe_that_the_readme_names_is_there() -> None:
    scripts = set(re.findall(r"recipes/[\w/-]+\.(?:py|yaml)", README))
    assert scripts
    assert all((ROOT / script).exists() for script in scripts)


def test_the_page_of_the_recipes_has_every_script_and_every_preset() -> None:
    page = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    scripts = set(re.findall(r"^\| `(\w+\.py)", page, flags=re.MULTILINE))
    assert scripts == {path.name for path in (ROOT / "recipes").glob("*.py")} - {"command_line.py"}
    table = page[page.index("## Presets") :].partition("\n\nWork")[0]
    presets = set(re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE))
    assert presets == {path.stem for path in (ROOT / "recipes" / "configs").glob("*.yaml")}


def _links(page: Path) -> list[tuple[str, str]]:
    """Texts and targets, those of pictures too."""
    return re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for _, target in _links(page):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def _names_in(tree: ast.AST, inside: str = "") -> set[str]:
    """Functions and classes of a module, and methods as Class.method."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(f"{inside}{node.name}")
            if isinstance(node, ast.ClassDef):
                names |= _names_in(node, f"{node.name}.")
    return names


def test_formulas_point_to_what_computes_them() -> None:
    page = ROOT / "docs" / "formulas.md"
    named = [(text.strip("`"), target) for text, target in _links(page) if text.startswith("`")]
    assert len(named) > 30
    for name, target in named:
        assert name in _names_in(ast.parse((page.parent / target).read_text(encoding="utf-8"))), (name, target)
