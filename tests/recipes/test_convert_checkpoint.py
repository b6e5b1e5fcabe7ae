"""Checkpoints of other projects from the command line: what other recipes make of them, and what is no checkpoint."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from hvq.files import read_tensors
from hvq.storage import RunFolder, load_hierarchy
from tests.conversion.states import CODES, pixelsnail_state, rosinality_state
from tests.runs import run_recipe, tensors_below


def _autoencoder() -> dict[str, torch.Tensor]:
    state = rosinality_state()
    for name in ("embed", "embed_avg", "cluster_size"):
        state[f"quantize_b.{name}"] = state[f"quantize_b.{name}"][..., :CODES].contiguous()
    return state


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """As the project's scripts write them: of several GPUs, with the arguments of the script beside the weights."""
    torch.save(_autoencoder(), tmp_path / "vqvae.pt")
    for level, grid in (("top", (2, 2)), ("bottom", (4, 4))):
        state = pixelsnail_state(grid, conditioned=level == "bottom")
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"model": wrapped, "args": Namespace(dropout=0.1, hier=level)}, tmp_path / f"{level}.pt")
    return [tmp_path / name for name in ("bottom.pt", "vqvae.pt", "top.pt")]


def test_other_recipes_go_on_from_there(files: list[Path], tmp_path: Path) -> None:
    run, images = RunFolder(tmp_path / "run"), tmp_path / "images"
    images.mkdir()
    for i in range(23):
        Image.new("RGB", (16, 16), (10 * i, 250 - 10 * i, 7)).save(images / f"{i}.png")
    converted = run_recipe("convert_checkpoint", *files, "--run-dir", run.path, "--data", images)
    assert (converted.code, converted.err) == (0, "")
    lines = converted.out.splitlines()
    assert lines[0].startswith(f"{run.autoencoder}: Converted from rosinality/vq-vae-2-pytorch (vqvae.pt). It takes")
    assert lines[0].endswith("Images are taken to be of 16x16.")
    assert [line.split(": ")[0] for line in lines[1:]] == [str(run.prior("bottom")), str(run.prior("top"))]
    sampled = run_recipe("sample", "--run-dir", run.path, "sampling.samples_per_class=3", "chunk_size=3")
    assert (sampled.code, sampled.err) == (0, "")
    samples, _ = read_tensors(run.samples / "samples.safetensors", "samples")
    assert samples["codes.bottom"].shape == (3, 4, 4)
    extracted = run_recipe("extract_codes", "--run-dir", run.path, "data.validation_share=0.3")
    assert (extracted.code, extracted.err) == (0, "")
    model = load_hierarchy(run).priors["top"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps = ["training.steps=2", "training.batch_size=5", "training.warmup_steps=0"]
    overrides = [f"priors.top.{step}" for step in steps]
    trained = run_recipe("train_prior", "--run-dir", run.path, "--level", "top", "--init-from", run.path, *overrides)
    assert (trained.code, trained.err) == (0, "")
    after = load_hierarchy(run).priors["top"].state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


def test_safetensors_and_torch_give_the_same(files: list[Path], tmp_path: Path) -> None:
    save_file(_autoencoder(), tmp_path / "vqvae.safetensors")
    for name in ("vqvae.pt", "vqvae.safetensors"):
        run = run_recipe(
            "convert_checkpoint", tmp_path / name, "--run-dir", tmp_path / f"of {name}", "--image-size", 64
        )
        assert run.code == 0
    one, other = (tensors_below(tmp_path / f"of {name}") for name in ("vqvae.pt", "vqvae.safetensors"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


class _Maker:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: torch.save(nn.Linear(2, 3), path), r"holds an object of torch.nn.modules.linear.Linear, and"),
        (
            lambda path: torch.save({"model": _Maker(path.parent / "made")}, path),
            r"holds an object of posix.mkdir, and",
        ),
        (
            lambda path: path.write_bytes(pickle.dumps(_Maker(path.parent / "made"), protocol=2)),
            r"and reading it could run any code",
        ),
        (lambda path: path.write_bytes(b"no checkpoint"), r"holds more than tensors, or is damaged"),
        (lambda path: path.write_bytes(b""), r"cannot be read as a checkpoint of torch"),
        (lambda path: torch.save(3.5, path), r"must be a mapping from names to tensors; it is a float"),
        (lambda path: None, r"no checkpoint at"),
    ],
)
def test_what_is_not_tensors_is_a_sentence(tmp_path: Path, write: object, expected: str) -> None:
    write(tmp_path / "file.pt")  # type: ignore[operator]
    failed = run_recipe("convert_checkpoint", tmp_path / "file.pt", "--run-dir", tmp_path / "run")
    assert failed.code == 1
    assert failed.err.startswith("error: ")
    assert failed.err.count("\n") == 1
    assert expected in failed.err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "made").exists()


def test_files_of_one_name_are_two_files(files: list[Path], tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file.stem).mkdir()
        file.rename(tmp_path / file.stem / "last.pt")
    paths = [tmp_path / file.stem / "last.pt" for file in files]
    assert run_recipe("convert_checkpoint", *paths, "--run-dir", tmp_path / "run").code == 0
    assert list(load_hierarchy(RunFolder(tmp_path / "run")).priors) == ["top", "bottom"]
    assert str(tmp_path) not in (tmp_path / "run" / "autoencoder" / "config.json").read_text()


def test_unknown_kinds_are_refused_with_the_known_ones(files: list[Path], tmp_path: Path) -> None:
    failed = run_recipe("convert_checkpoint", files[0], "--run-dir", tmp_path / "run", "--from", "keras")
    assert failed.code == 1
    assert "choose from 'rosinality', 'vvvm23'" in failed.err
