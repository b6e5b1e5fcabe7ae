from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hvq.errors import CheckpointError, StorageError
from hvq.files import (
    read_json,
    read_tensors,
    remove_leftovers,
    write_file,
    write_folder,
    write_json,
    write_tensors,
)
from tests.pickling import block_pickle


def _fail(path: Path) -> None:
    if path.is_dir():
        (path / "half.txt").write_text("half")
    else:
        path.write_text("half")
    raise RuntimeError("interrupted")


def test_a_file_is_made_with_its_folders_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_file(path, lambda partial: partial.write_text("one") and None)
    assert path.read_text() == "one"
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"):
        write_file(path, _fail)
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr("hvq.files._exchange", lambda *_: False)
    path = tmp_path / "model"
    write_folder(path, lambda partial: (partial / "old.txt").write_text("old") and None)
    write_folder(path, lambda partial: (partial / "new.txt").write_text("new") and None)
    assert [found.name for found in path.iterdir()] == ["new.txt"]
    assert [found.name for found in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("existed", [True, False])
def test_a_folder_that_fails_leaves_the_old_one_and_no_trace(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "model"
    if existed:
        write_folder(path, lambda partial: (partial / "old.txt").write_text("old") and None)
    with pytest.raises(RuntimeError, match="interrupted"):
        write_folder(path, _fail)
    assert [str(found.relative_to(tmp_path)) for found in sorted(tmp_path.rglob("*"))] == (
        ["model", "model/old.txt"] if existed else []
    )


def test_a_folder_whose_renaming_fails_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    write_folder(path, lambda partial: (partial / "old.txt").write_text("old") and None)
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if source.name.endswith(".partial"):
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr("hvq.files._exchange", lambda *_: False)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StorageError, match=r"model cannot be written: disk full; what stood there before is as it was"):
        write_folder(path, lambda partial: (partial / "new.txt").write_text("new") and None)
    assert [found.name for found in path.iterdir()] == ["old.txt"]
    assert [found.name for found in tmp_path.iterdir()] == ["model"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_json(path, {"step": 1})
    script = (
        "import os, signal, sys; from pathlib import Path; from hvq.files import write_file\n"
        "def write(partial):\n"
        "    partial.write_text('{\"step\"'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_file(Path(sys.argv[1]), write)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode < 0
    assert read_json(path, "numbers") == {"step": 1}


# Kills itself as it gives the new folder its name, before which the old one may have lost its own.
KILLED_AS_IT_RENAMES = """
import os, signal, sys
from pathlib import Path
from hvq import files

rename = os.replace
def replace(source, target):
    rename(source, target) if not str(source).endswith(".partial") else os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
files._exchange = lambda *_: sys.argv[2] == "exchanges" and os.kill(os.getpid(), signal.SIGKILL)
files.write_folder(Path(sys.argv[1]), lambda partial: (partial / "new.txt").write_text("new") and None)
"""


@pytest.mark.parametrize("system", ["exchanges", "renames"])
def test_a_killed_writer_of_a_folder_leaves_the_old_one(tmp_path: Path, system: str) -> None:
    path = tmp_path / "model"
    write_folder(path, lambda partial: (partial / "old.txt").write_text("old") and None)
    script = [sys.executable, "-c", KILLED_AS_IT_RENAMES, str(path), system]
    assert subprocess.run(script, check=False).returncode < 0
    assert path.exists() == (system == "exchanges")
    remove_leftovers(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["model"]
    assert [found.name for found in path.iterdir()] == ["old.txt"]


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".model.7.partial", ".model.9.old", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / ".x.json.7.partial").write_text("{")
    (tmp_path / ".hidden").write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(found.name for found in tmp_path.iterdir()) == [".hidden", "model"]


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from hvq.errors import StorageError
from hvq.files import write_file, write_tensors

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (
    lambda path: write_tensors(path, {"x": torch.zeros(9_973)}),
    lambda path: write_file(path, lambda partial: partial.write_text("x" * 10_007) and None),
):
    try:
        write(Path(sys.argv[1]) / "file")
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    script = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    outcome = subprocess.run(script, check=True, capture_output=True, text=True)
    lines = outcome.stdout.splitlines()
    assert len(lines) == 2
    assert all("file cannot be written: " in line and "File too large" in line for line in lines)
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_where_nothing_can_be_written_the_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(StorageError, match=r"run/metrics.json cannot be written: (Not a directory|File exists)"):
        write_json(tmp_path / "run" / "metrics.json", {})


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"häh": "ü"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "numbers") == value
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["b", "a"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_holds_finite_numbers_only(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": number})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [(None, "no metrics at"), (b"{", "cannot be read"), (b"\xff", "cannot be read"), (b"[1]", "it is a list")],
)
def test_json_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=fault) as raised:
        read_json(path, "metrics")
    assert str(path) in str(raised.value)


def test_tensors_come_back_bit_for_bit_with_types_and_metadata(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(7, 5)
    tensors = {
        "float": base,
        "transposed": base.T,
        "view": base[2:4],
        "half": base.to(torch.bfloat16),
        "long": torch.tensor([2**62, -3]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base),
    }
    path = tmp_path / "deep" / "model.safetensors"
    write_tensors(path, tensors, {"format": "1"})
    again, metadata = read_tensors(path, "weights")
    assert metadata == {"format": "1"}
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor.detach())


def test_tensors_without_metadata_have_none(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(3)})
    assert read_tensors(tmp_path / "x.safetensors", "weights")[1] == {}


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_truncated_tensors_are_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"x": torch.arange(11)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"weights at .* damaged or is not a safetensors file"):
        read_tensors(path, "weights")


@pytest.mark.parametrize("kept", [40, -1])
def test_a_file_that_is_cut_short_says_how_long_it_would_be(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"x": torch.arange(11), "y": torch.ones(3, 5)}, {"about": "x"})
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    # Within its header, what is known is where that ends.
    known = len(whole) if kept < 0 else 8 + int.from_bytes(whole[:8], "little")
    cut = rf"it is cut short, at {len(whole[:kept]):,} bytes of {known:,}; copy or download it again$"
    with pytest.raises(CheckpointError, match=cut):
        read_tensors(path, "weights")


def _pickled(tensor: torch.Tensor, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": tensor}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


STRANGERS = {
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "torch.save": (
        _pickled(torch.ones(3), zipped=True),
        "a zip archive, such as torch.save writes, which may",
    ),
    "pickle": (_pickled(torch.ones(3), zipped=False), "a pickle, which may hold code and is not read"),
    "page": (b"<!DOCTYPE html><html>404</html>", "a page of the web; download the file itself"),
    "anything": (b"\x08\0\0\0\0\0\0\0{not it}and more", "is damaged or is not a safetensors file"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_stands_in_place_of_tensors_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, (content, sentence) = tmp_path / "model.safetensors", STRANGERS[name]
    path.write_bytes(content)
    block_pickle(monkeypatch)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        read_tensors(path, "weights")
    assert str(raised.value).startswith(f"weights at {path} is damaged or is not a safetensors file: ")
    assert "\n" not in str(raised.value)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        read_tensors(tmp_path / "none.safetensors", "weights")
    with pytest.raises(CheckpointError, match="weights at"):
        read_tensors(tmp_path, "weights")
