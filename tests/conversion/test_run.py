"""What is converted stands in a run folder as if it had been trained there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hvq.conversion import KINDS, convert_checkpoints, detect_kind
from hvq.errors import CheckpointError, ConfigurationError
from hvq.pipeline import HierarchicalVQ
from hvq.quantizers import Quantizer
from hvq.storage import RunFolder, load_autoencoder, load_hierarchy, load_prior
from tests.conversion.states import SIZES, State, double, pixelsnail_state, rosinality_decode, rosinality_state
from tests.pickling import block_pickle

CODES = SIZES["top"]


def _autoencoder() -> State:
    """With as many codes below as on top, which priors there take for granted."""
    state = rosinality_state()
    for name in ("embed", "embed_avg", "cluster_size"):
        state[f"quantize_b.{name}"] = state[f"quantize_b.{name}"][..., :CODES]
    return state


def _prior(level: str, grid: tuple[int, int]) -> dict[str, object]:
    return {"model": pixelsnail_state(grid, conditioned=level == "bottom"), "args": None}


def test_an_autoencoder_and_its_priors_make_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, state = RunFolder(tmp_path / "run"), _autoencoder()
    contents = {"b.pt": _prior("bottom", (6, 10)), "a.pt": state, "t.pt": _prior("top", (3, 5))}
    written = convert_checkpoints(run, contents, data_path="pictures")
    assert sorted(written) == sorted([run.autoencoder, run.prior("top"), run.prior("bottom")])
    block_pickle(monkeypatch)
    system = HierarchicalVQ.from_pretrained(run.path, chunk_size=3)
    assert list(system.hierarchy.priors) == ["top", "bottom"]
    # As large as the grids say.
    assert system.hierarchy.image_size == (24, 40)
    images = system.sample(3, seed=5)
    assert images.shape == (3, 3, 24, 40)
    codes = system.encode(images)
    expected = rosinality_decode(double(state), codes)
    torch.testing.assert_close(system.decode(codes).double(), ((expected + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)
    for folder, load in ((run.autoencoder, load_autoencoder), (run.prior("top"), load_prior)):
        about = load(folder)[1].about
        assert "rosinality/vq-vae-2-pytorch" in about
    assert "[-1, 1]" in load_autoencoder(run.autoencoder)[1].about
    config = run.load_config()
    assert (config.data.path, config.data.size, config.data.channels) == ("pictures", (24, 40), 3)  # type: ignore[union-attr]
    assert config.autoencoder == load_autoencoder(run.autoencoder)[1].autoencoder
    assert config.prior("bottom").model == load_prior(run.prior("bottom"))[1].model


def test_priors_may_come_later(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    convert_checkpoints(run, {"a.pt": _autoencoder()}, image_size=(24, 40), data_path="pictures")
    assert list(load_hierarchy(run).priors) == []
    convert_checkpoints(run, {"t.pt": _prior("top", (3, 5))})
    convert_checkpoints(run, {"b.pt": _prior("bottom", (6, 10))})
    assert list(load_hierarchy(run).priors) == ["top", "bottom"]
    config = run.load_config()
    assert sorted(config.priors) == ["bottom", "top"]
    assert config.data.path == "pictures"  # type: ignore[union-attr]


def test_sizes_where_nothing_says_them(tmp_path: Path) -> None:
    convert_checkpoints(RunFolder(tmp_path), {"a.pt": _autoencoder()})
    assert load_autoencoder(tmp_path / "autoencoder")[1].image_size == (256, 256)


def test_what_is_there_stays(tmp_path: Path) -> None:
    run, state = RunFolder(tmp_path), _autoencoder()
    convert_checkpoints(run, {"a.pt": state, "t.pt": _prior("top", (3, 5))})
    for contents in ({"a.pt": state}, {"t.pt": _prior("top", (3, 5))}):
        with pytest.raises(CheckpointError, match="is there already; name another run folder"):
            convert_checkpoints(run, contents)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"t.pt": _prior("top", (5, 5))}, r"t\.pt: the prior is of a grid of 5x5, so of images of 40x40"),
        ({"two.pt": _autoencoder()}, r"one autoencoder; received a\.pt, two\.pt"),
        ({"two.pt": _prior("bottom", (6, 10))}, r"one prior of level bottom; received b\.pt, two\.pt"),
        ({"q.pt": {"_codebook.embed": torch.zeros(1, 7, 3)}}, r"q\.pt: .* lacks _codebook\.cluster_size"),
        ({"a.pt": rosinality_state()}, r"level bottom of 11 codes; the autoencoder's levels have top 11, bottom 13"),
        ({"a.pt": {"weight": torch.zeros(2)}}, r"a\.pt: the checkpoint is of none of the known kinds, rosinality,"),
        ({"a.pt": {"enc_b.blocks.0.weight": torch.zeros(2)}}, r"a\.pt: .* lacks quantize_conv_t\.weight"),
        ({"a.pt": None}, r"a\.pt: a checkpoint must be a mapping"),
    ],
)
def test_what_does_not_belong_together_leaves_nothing(tmp_path: Path, changes: State, match: str) -> None:
    contents = {"a.pt": _autoencoder(), "b.pt": _prior("bottom", (6, 10)), **changes}
    with pytest.raises(CheckpointError, match=match):
        convert_checkpoints(RunFolder(tmp_path), contents)
    assert not list(tmp_path.iterdir())


def test_a_kind_that_is_named_is_what_names_are_held_against(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit codebook: it lacks _codebook\.embed"):
        convert_checkpoints(RunFolder(tmp_path), {"a.pt": _autoencoder()}, kind="codebook")


def test_images_of_two_channels_make_no_run(tmp_path: Path) -> None:
    state = _autoencoder()
    state["enc_b.blocks.0.weight"] = state["enc_b.blocks.0.weight"][:, :2]
    state["dec.blocks.6.weight"] = state["dec.blocks.6.weight"][:, :2]
    state["dec.blocks.6.bias"] = state["dec.blocks.6.bias"][:2]
    with pytest.raises(ConfigurationError, match="1 or 3 channels; the autoencoder's have 2"):
        convert_checkpoints(RunFolder(tmp_path), {"a.pt": state})


def test_codebooks_become_a_quantizer(tmp_path: Path) -> None:
    def codebook(i: int) -> dict[str, Tensor]:
        tensors = {"embed": torch.randn(7, 3), "embed_avg": torch.randn(7, 3), "cluster_size": torch.ones(7)}
        return {f"quantizer.layers.{i}.codebook.{name}": tensor for name, tensor in tensors.items()}

    state = {**codebook(0), **codebook(1), "encoder.weight": torch.zeros(2)}
    assert convert_checkpoints(RunFolder(tmp_path), {"model.safetensors": state}) == [tmp_path / "quantizer"]
    model = Quantizer.from_pretrained(tmp_path / "quantizer")
    assert model.encode(torch.randn(2, 3, 5)).shape == (2, 5, 2)
    assert model.description is not None
    assert model.description.about == "Codebooks of model.safetensors, without 1 other tensors of the model."
    with pytest.raises(CheckpointError, match="is there already"):
        convert_checkpoints(RunFolder(tmp_path), {"model.safetensors": state})


def test_kinds_are_told_apart() -> None:
    codebook = {"_codebook.embed": torch.zeros(1, 2, 3)}
    found = [detect_kind(state) for state in (rosinality_state(), pixelsnail_state((3, 5), conditioned=True), codebook)]
    assert found == ["rosinality", "rosinality-pixelsnail", "codebook"]
    assert set(found) <= set(KINDS)
