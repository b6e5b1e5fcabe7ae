"""Pictures of any size on the command line, whole and in tiles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hvq import HierarchicalVQ
from hvq.files import read_tensors
from hvq.storage import encoder_hash
from tests.runs import TrainedRun, run_recipe

SIZE = (37, 190)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one.png", "two.bmp")]
    for seed, path in enumerate(paths):
        shades = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
        Image.fromarray(shades).save(path)
    return paths


def _pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy())


def test_codes_and_pictures_are_those_of_the_model(trained_run: TrainedRun, pictures: list[Path]) -> None:
    folder, model = pictures[0].parent / "rebuilt", HierarchicalVQ.from_pretrained(trained_run.run.path, chunk_size=1)
    outcome = run_recipe("reconstruct", "--run-dir", trained_run.run.path, "--to", folder, "--images", *pictures)
    assert outcome.code == 0, outcome.err
    for path in pictures:
        image = _pixels(path)[None, None].float() / 255
        codes, metadata = read_tensors(folder / f"{path.stem}.safetensors", "codes")
        expected = model.encode(image)
        assert {name: code.tolist() for name, code in codes.items()} == {n: c.tolist() for n, c in expected.items()}
        about = json.loads(metadata["codes"])
        assert about == {"size": [*SIZE], "encoder_hash": encoder_hash(model.hierarchy.autoencoder)}
        rebuilt = (255 * model.decode(codes, size=about["size"])).round()[0, 0]
        assert torch.equal(_pixels(folder / f"{path.stem}.png"), rebuilt.byte())
    assert outcome.out.count("37x190, mean squared error") == 2


def test_tiles_give_the_same(trained_run: TrainedRun, pictures: list[Path]) -> None:
    words = ["--run-dir", trained_run.run.path, "--images", pictures[0]]
    for name, more in (("whole", []), ("tiles", ["--tile", 136])):
        outcome = run_recipe("reconstruct", *words, "--to", pictures[0].parent / name, *more)
        assert outcome.code == 0, outcome.err
    whole, tiles = (
        read_tensors(pictures[0].parent / name / "one.safetensors", "codes")[0] for name in ("whole", "tiles")
    )
    assert min(float((tiles[name] == whole[name]).double().mean()) for name in whole) > 0.99, "but for near-ties"


def test_what_cannot_be_done_is_one_sentence(trained_run: TrainedRun, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    words = ["--run-dir", trained_run.run.path, "--to", tmp_path / "rebuilt"]
    for images, more, fault in [
        ([broken], [], "cannot be read"),
        ([tmp_path / "missing.png"], [], "cannot be read"),
        ([pictures[0], tmp_path / "elsewhere" / "one.png"], [], "names of their own; several are one"),
        ([pictures[0]], ["--tile", 16], "tiles must have at least"),
    ]:
        outcome = run_recipe("reconstruct", *words, "--images", *images, *more)
        assert outcome.code == 1
        assert fault in outcome.err
        assert outcome.err.count("\n") == 1
    assert not (tmp_path / "rebuilt").exists()


def test_no_picture_is_written_over(trained_run: TrainedRun, pictures: list[Path]) -> None:
    words = ["--run-dir", trained_run.run.path, "--images", pictures[0], "--to"]
    left = pictures[0].read_bytes()
    outcome = run_recipe("reconstruct", *words, pictures[0].parent)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "one.png is there already, and would be written over; take another --to" in outcome.err
    assert pictures[0].read_bytes() == left
    other = pictures[0].parent / "other"
    other.mkdir()
    (other / "one.png").write_bytes(b"another picture")
    assert run_recipe("reconstruct", *words, other).code == 1
    assert (other / "one.png").read_bytes() == b"another picture"
    # What an earlier call has left may be.
    again = pictures[0].parent / "again"
    assert [run_recipe("reconstruct", *words, again).code for _ in range(2)] == [0, 0]
