"""Model folders come back as they were written, with nothing but their path; what does not belong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder, build_autoencoder
from hvq.config import AutoencoderConfig, CodeSamplingConfig
from hvq.config_priors import TransformerPriorConfig
from hvq.errors import CheckpointError, DataError
from hvq.priors import Condition, Prior, build_prior
from hvq.storage import encoder_hash, load_autoencoder, load_prior, save_autoencoder, save_prior
from hvq.storage.models import AutoencoderDescription, PriorDescription, require_channels
from tests.pickling import block_pickle
from tests.runs import TrainedRun

# The coarsest is last in the alphabet, which is the order in which safetensors gives names back.
NAMES = ("zenith", "middle", "depth")
SMALL = {"width": 4, "residual_blocks": 1, "residual_width": 2, "codebook_size": 7, "code_dimension": 3}
DESCRIPTION = AutoencoderDescription(
    autoencoder=AutoencoderConfig.model_validate(
        {
            "channels": 2,
            "levels": {name: {**SMALL, "ratio": 2} for name in NAMES},
            "decoder": {"width": 4, "residual_blocks": 1, "residual_width": 2},
            "level_dropout": 0.5,
        }
    ),
    image_size=(16, 24),
    classes=("cat", "dog"),
)
PRIOR_DESCRIPTION = PriorDescription(
    model=TransformerPriorConfig(width=8, layers=1, heads=2),
    level="middle",
    codebook_size=7,
    coarser={"zenith": 5},
    grid=(4, 6),
    image_size=(16, 24),
    classes=("cat", "dog"),
    encoder_hash="abc",
    sampling=CodeSamplingConfig(temperature=0.5, top_k=3),
    held_out_nats=1.25,
)


@pytest.fixture
def autoencoder() -> Autoencoder:
    return _scrambled(build_autoencoder(DESCRIPTION.autoencoder)).eval()


@pytest.fixture
def prior() -> Prior:
    return _scrambled(
        build_prior(PRIOR_DESCRIPTION.model, codebook_size=7, coarser=PRIOR_DESCRIPTION.coarser, num_classes=2)
    ).eval()


Model = TypeVar("Model", bound=nn.Module)


def _scrambled(model: Model) -> Model:
    """Every tensor unlike what a fresh model has."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
            elif tensor.dtype == torch.int64:
                tensor.add_(17)
    return model


def test_an_autoencoder_comes_back(tmp_path: Path, autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    save_autoencoder(tmp_path / "model", autoencoder, DESCRIPTION)
    block_pickle(monkeypatch)
    loaded, description = load_autoencoder(tmp_path / "model")
    assert description == DESCRIPTION
    assert loaded.level_names == NAMES
    assert not loaded.training
    assert encoder_hash(loaded) == encoder_hash(autoencoder)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in autoencoder.state_dict().items())
    images = torch.rand(3, 2, 17, 24) * 2 - 1
    assert torch.equal(loaded(images).reconstruction, autoencoder(images).reconstruction)


def test_a_prior_comes_back(tmp_path: Path, prior: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    save_prior(tmp_path / "model", prior.state_dict(), PRIOR_DESCRIPTION)
    block_pickle(monkeypatch)
    loaded, description = load_prior(tmp_path / "model")
    assert description == PRIOR_DESCRIPTION
    assert not loaded.training
    codes = torch.randint(0, 7, (3, 4, 6))
    condition = Condition(codes={"zenith": torch.randint(0, 5, (3, 2, 3))}, labels=torch.tensor([0, 1, -1]))
    assert torch.equal(loaded(codes, condition), prior(codes, condition))


def test_a_folder_holds_two_files_without_traces_of_the_training(trained_run: TrainedRun) -> None:
    run = trained_run.run
    for folder in (run.autoencoder, run.prior("top"), run.prior("bottom")):
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        names = list(load_file(folder / "model.safetensors"))
        assert names
        assert not [name for name in names if "module." in name or "_orig_mod" in name]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, autoencoder: Autoencoder) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "left.txt").write_text("of something else")
    save_autoencoder(tmp_path / "model", autoencoder, DESCRIPTION)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["config.json", "model.safetensors"]


# --- damage -------------------------------------------------------------------------------------------------------


def _edit_weights(edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def _edit_config(edit: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        edit(content)
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


FIRST = {"autoencoder": "decoder.0.bias", "prior": "embedding.weight"}
FAULTS: dict[str, tuple[Callable[[str], Callable[[Path], object]], str]] = {
    "one tensor gone": (lambda what: _edit_weights(lambda t: t.pop(FIRST[what])), "lacks the tensor {first};"),
    "all gone but one": (
        lambda what: _edit_weights(lambda t: [t.pop(name) for name in list(t) if name != FIRST[what]]),
        r"lacks the tensor .* and \d+ more;",
    ),
    "one too many": (lambda what: _edit_weights(lambda t: t.update(x=torch.zeros(1))), "has the unknown tensor x;"),
    "other shape": (
        lambda what: _edit_weights(lambda t: t.update({FIRST[what]: torch.zeros(5, 2, 3)})),
        r"has {first} of shape \[5, 2, 3\], where the model has \[\d+(, \d+)?\]",
    ),
    "truncated": (lambda what: _truncate, "model.safetensors is damaged"),
    "no weights": (lambda what: lambda folder: (folder / "model.safetensors").unlink(), "no {what} weights at"),
    "no configuration": (lambda what: lambda folder: (folder / "config.json").unlink(), "no {what} configuration at"),
    "broken configuration": (
        lambda what: lambda folder: (folder / "config.json").write_text("{"),
        "{what} configuration at .* cannot be read",
    ),
    "later format": (
        lambda what: _edit_config(lambda c: c.update(format_version=c["format_version"] + 1)),
        r"format_version [23]; this version of hvq reads [12]: a newer version wrote it, so upgrade hvq$",
    ),
    "earlier format": (
        lambda what: _edit_config(lambda c: c.update(format_version=c["format_version"] - 1)),
        r"format_version [01]; this version of hvq reads [12]",
    ),
    "no format": (lambda what: _edit_config(lambda c: c.pop("format_version")), "format_version None"),
    "unknown field": (lambda what: _edit_config(lambda c: c.update(colour="red")), "{what} configuration .* colour"),
    "field gone": (lambda what: _edit_config(lambda c: c.pop("image_size")), "{what} configuration .* image_size"),
}


@pytest.mark.parametrize("what", ["autoencoder", "prior"])
@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_named(tmp_path: Path, autoencoder: Autoencoder, prior: Prior, what: str, fault: str) -> None:
    save_autoencoder(tmp_path / "autoencoder", autoencoder, DESCRIPTION)
    save_prior(tmp_path / "prior", prior.state_dict(), PRIOR_DESCRIPTION)
    damage, sentence = FAULTS[fault]
    damage(what)(tmp_path / what)
    expected = sentence.replace("{first}", FIRST[what]).replace("{what}", what)
    with pytest.raises(CheckpointError, match=expected) as raised:
        load_autoencoder(tmp_path / what) if what == "autoencoder" else load_prior(tmp_path / what)
    assert str(tmp_path / what) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no autoencoder in .*nowhere: train it first, or check the path"):
        load_autoencoder(tmp_path / "nowhere")


# --- the hash -----------------------------------------------------------------------------------------------------


def test_the_hash_covers_what_determines_codes_and_nothing_else(autoencoder: Autoencoder) -> None:
    before = encoder_hash(autoencoder)
    images = torch.rand(2, 2, 16, 24)
    codes = autoencoder.encode(images)
    changed: set[str] = set()
    for name, tensor in autoencoder.state_dict().items():
        kept = tensor.clone()
        tensor.copy_(~kept if kept.dtype == torch.bool else kept + 1)
        if encoder_hash(autoencoder) != before:
            changed.add(name)
        else:
            same = autoencoder.encode(images)
            assert all(torch.equal(same[level], codes[level]) for level in NAMES), name
        tensor.copy_(kept)
    assert encoder_hash(autoencoder) == before
    assert {name for name in changed if "encoder" in name} == {n for n in autoencoder.state_dict() if "encoder" in n}
    assert {f"levels.{level}.quantizer.head_codebooks.0.vectors" for level in NAMES} <= changed
    assert not {name for name in changed if name.startswith("decoder.") or "moving" in name or "absent" in name}


def test_the_hash_covers_type_and_not_only_value(autoencoder: Autoencoder) -> None:
    assert encoder_hash(autoencoder) != encoder_hash(autoencoder.double())


def test_images_of_other_channels_are_refused() -> None:
    require_channels(3, 3)
    with pytest.raises(DataError, match=r"takes images of 1 channel\(s\); data.channels gives 3: use the config"):
        require_channels(1, 3)
