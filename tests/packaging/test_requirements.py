"""What the files of versions say agrees with what the package asks for."""

from __future__ import annotations

import re
import tomllib
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CORE = {
    "accelerate",
    "einops",
    "numpy",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "torch",
    "torchmetrics",
    "tqdm",
}


def _requirements(lines: list[str]) -> dict[str, Requirement]:
    found = (Requirement(line) for line in lines)
    return {canonicalize_name(one.name): one for one in found if one.name != "hvq"}


def _pins(name: str) -> dict[str, Version]:
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), flags=re.MULTILINE)
    return {canonicalize_name(package): Version(version) for package, version in lines}


def _lowest(requirement: Requirement) -> Version:
    (bound,) = [clause for clause in requirement.specifier if clause.operator == ">="]
    return Version(bound.version)


def test_the_core_is_what_it_is_said_to_be() -> None:
    assert _requirements(PROJECT["dependencies"]).keys() == CORE


def test_extras_have_the_names_that_messages_and_pages_give() -> None:
    assert EXTRAS.keys() >= {"data", "hub", "export", "report", "bench", "docs", "dev"}
    pages = [
        ROOT / name
        for name in ("CONTRIBUTING.md", "Makefile", "README.md", "benchmarks/README.md", "recipes/README.md")
    ]
    sources = [path for folder in ("recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for page in [*pages, *sources]:
        for names in re.findall(r"(?:hvq|\.)\[([a-z,]+)\]", page.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= EXTRAS.keys(), page
    named = {
        name
        for path in (ROOT / "hvq").rglob("*.py")
        for name in re.findall(r'require_package\([^)]*extra="(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert {"data", "hub", "report"} <= named <= EXTRAS.keys()


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_versions_that_are_tested_are_allowed(name: str) -> None:
    asked, pins = _requirements([*PROJECT["dependencies"], *chain(*EXTRAS.values())]), _pins(name)
    assert pins.keys() >= CORE
    assert [line for package, line in asked.items() if package in pins and pins[package] not in line.specifier] == []


def test_the_oldest_versions_are_the_bounds() -> None:
    pins = _pins("constraints-oldest.txt")
    for package, requirement in _requirements(PROJECT["dependencies"]).items():
        assert pins[package] == _lowest(requirement), package
