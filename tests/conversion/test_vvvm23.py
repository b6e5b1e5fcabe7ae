"""The converted autoencoder of vvvm23 computes what the original's formulae say, of any number of levels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvq.conversion import convert_checkpoints, convert_vvvm23
from hvq.errors import CheckpointError
from hvq.storage import RunFolder, load_autoencoder
from tests.conversion.states import double
from tests.conversion.vvvm23_states import vvvm23_forward, vvvm23_state


@pytest.mark.parametrize("ratios", [(8,), (4, 2), (2, 4, 2), (2, 2, 2, 2)])
def test_codes_and_images_equal_the_originals(ratios: tuple[int, ...]) -> None:
    state = vvvm23_state(ratios)
    images = torch.rand(3, 3, 48, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    model, config = convert_vvvm23(state)
    codes, expected = vvvm23_forward(double(state), ratios, images.double())
    found = model.encode(images)
    assert [level.ratio for level in config.levels.values()] == list(reversed(ratios))
    for place, name in enumerate(reversed(list(found))):
        assert torch.equal(found[name], codes[place])
    assert max(len(code.unique()) for code in found.values()) > 5
    assert expected.std() > 0.1
    torch.testing.assert_close(model.decode(found).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images).reconstruction.double(), expected, rtol=0, atol=1e-5)


def test_images_of_any_codes_equal_the_originals() -> None:
    ratios = (2, 4, 2)
    state, generator = vvvm23_state(ratios), torch.Generator().manual_seed(3)
    model, _ = convert_vvvm23(state)
    grids = {0: (16, 24), 1: (4, 6), 2: (2, 3)}
    codes = {place: torch.randint(13, (2, *grid), generator=generator) for place, grid in grids.items()}
    _, expected = vvvm23_forward(double(state), ratios, codes=codes)
    found = model.decode({"top": codes[2], "middle": codes[1], "bottom": codes[0]})
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_it_comes_back_from_a_run(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in vvvm23_state((2, 2, 2)).items()}
    convert_checkpoints(RunFolder(tmp_path), {"state.pt": state}, image_size=(24, 24))
    model, description = load_autoencoder(tmp_path / "autoencoder")
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    expected, _ = convert_vvvm23(vvvm23_state((2, 2, 2)))
    assert torch.equal(model(images).reconstruction, expected(images).reconstruction)
    assert description.about == (
        "Converted from vvvm23/vqvae-2 (state.pt). It takes and gives images in [-1, 1], float: byte / 127.5 - 1."
    )


def test_grey_ones_say_their_range(tmp_path: Path) -> None:
    state = vvvm23_state((2, 2))
    state["encoders.0.layers.0.0.weight"] = state["encoders.0.layers.0.0.weight"][:, :1]
    ends = {name: tensor for name, tensor in state.items() if name.startswith("decoders.0.layers.3.")}
    for name, tensor in ends.items():
        state[name] = tensor[:1]
    norms = {name: tensor for name, tensor in state.items() if name.startswith("decoders.0.layers.4.") and tensor.dim()}
    for name, tensor in norms.items():
        state[name] = tensor[:1]
    convert_checkpoints(RunFolder(tmp_path), {"state.pt": state}, image_size=(28, 28))
    assert "[0, 1]" in load_autoencoder(tmp_path / "autoencoder")[1].about


def test_what_does_not_fit_is_named() -> None:
    state = vvvm23_state((2, 2))
    missing = {name: tensor for name, tensor in state.items() if name != "upscalers.0.stages.0.1.running_var"}
    with pytest.raises(CheckpointError, match=r"vvvm23: it lacks upscalers\.0\.stages\.0\.1\.running_var;"):
        convert_vvvm23(missing)
    with pytest.raises(CheckpointError, match=r"the unknown decoders\.2\.layers\.0\.bias"):
        convert_vvvm23({**state, "decoders.2.layers.0.bias": torch.zeros(2)})
    state["encoders.1.layers.3.stack.1.alpha"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"alpha of shape \[2\].*cannot become the \[\]"):
        convert_vvvm23(state)
