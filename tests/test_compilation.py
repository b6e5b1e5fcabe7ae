"""C sources are compiled once, and a machine that cannot do it is told apart from one that can."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hvq.compilation import compile_library, load_compiled

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler on the path"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "seven.c"
    file.write_text("int seven(void) { return 7; }\n")
    return file


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(source: Path, tmp_path: Path) -> None:
    assert compile_library(source).seven() == 7
    (first,) = tmp_path.rglob("*.so")
    made = first.stat().st_mtime_ns
    assert compile_library(source).seven() == 7
    assert first.stat().st_mtime_ns == made
    source.write_text("int seven(void) { return 6 + 1; }\n")
    assert compile_library(source).seven() == 7
    assert len(list(tmp_path.rglob("*.so"))) == 2


@needs_compiler
def test_flags_make_another_library(source: Path) -> None:
    source.write_text("int seven(void) { return NUMBER; }\n")
    assert compile_library(source, "-DNUMBER=7").seven() == 7
    assert compile_library(source, "-DNUMBER=8").seven() == 8


@needs_compiler
def test_a_source_that_does_not_compile_is_no_library(source: Path, tmp_path: Path) -> None:
    source.write_text("int seven(void) { return }\n")
    assert load_compiled(source) is None
    assert not list(tmp_path.rglob("*.so"))


def test_without_a_compiler_there_is_no_library(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_compiled(source) is None
    with pytest.raises(FileNotFoundError, match="none of cc, gcc and clang"):
        compile_library(source)


@needs_compiler
def test_without_a_cache_folder_there_is_no_library(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert load_compiled(source) is None
