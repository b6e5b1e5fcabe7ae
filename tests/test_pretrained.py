"""Modules are saved, loaded and published by themselves: every kind, in any precision, or a sentence says why not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hvq.autoencoders import Autoencoder, Level
from hvq.errors import CheckpointError, ConfigurationError, StorageError
from hvq.model_card import ModelCard
from hvq.priors import Condition, PixelCNNPrior, Prior, TransformerPrior
from hvq.quantizers import GumbelQuantizer, Quantizer, ResidualQuantizer, SimQuantizer, VectorQuantizer
from tests.autoencoders.small import pictures, small_model
from tests.hubs import block_hub, make_hub
from tests.pickling import block_pickle
from tests.priors.small import KINDS as PRIORS
from tests.priors.small import codes_of, condition_of, small_prior
from tests.quantizers.kinds import DIMENSION
from tests.quantizers.kinds import KINDS as QUANTIZERS

FILES = ["README.md", "config.json", "model.safetensors"]
SIZE = (17, 24)
ABOUT: dict[str, Any] = {"level": "bottom", "grid": (4, 6), "image_size": SIZE, "encoder_hash": "abc"}


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- every kind comes back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantizer_comes_back(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = QUANTIZERS[kind]()
    quantizer.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == FILES
    block_hub(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        block_pickle(patch)
        loaded = Quantizer.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(quantizer)
    assert not loaded.training
    assert loaded.describe() == quantizer.describe() == loaded.description
    assert str(loaded) == str(quantizer)
    latents = torch.randn(2, DIMENSION, 3, 5)
    again, expected = loaded(latents), quantizer.eval()(latents)
    assert torch.equal(again.codes, expected.codes)
    assert torch.equal(again.vectors, expected.vectors)
    assert all(torch.equal(again.losses[name], loss) for name, loss in expected.losses.items())


@pytest.mark.parametrize("kind", PRIORS)
def test_a_prior_comes_back(tmp_path: Path, kind: str) -> None:
    prior = small_prior("bottom", kind)
    prior.save_pretrained(tmp_path / "saved", **ABOUT)
    loaded = Prior.from_pretrained(tmp_path / "saved")
    assert type(loaded) is type(prior)
    assert loaded.describe().model == prior.describe(**ABOUT).model
    assert loaded.description.classes == ("0", "1", "2")
    codes, condition = codes_of("bottom", 2), condition_of("bottom", 2)
    assert torch.equal(loaded(codes, condition), prior(codes, condition))


@pytest.mark.parametrize("several", [1, 2])
def test_a_prior_told_of_everything_comes_back(tmp_path: Path, several: int) -> None:
    prior = small_prior(
        "middle",
        codes_per_position=several,
        coarser_codes_per_position={"top": 3},
        feature_channels=2,
        vector_size=5,
        spatial_dims=2,
    )
    prior.save_pretrained(tmp_path / "saved", **{**ABOUT, "level": "middle", "classes": ("cat", "dog", "owl")})
    loaded = Prior.from_pretrained(tmp_path / "saved")
    own = {"middle": 2} if several == 2 else {}
    assert loaded.description.codes_per_position == {"top": 3, **own}
    assert loaded.describe() == loaded.description
    condition = Condition(
        codes={"top": torch.randint(0, 7, (2, 2, 3, 3))},
        labels=torch.tensor([2, -1]),
        features=torch.randn(2, 2, 4, 6),
        vector=torch.randn(2, 5),
    )
    codes = torch.randint(0, 11, (2, 2, 3, 2) if several == 2 else (2, 2, 3))
    assert torch.equal(loaded(codes, condition), prior(codes, condition))


@pytest.mark.parametrize("ratios", [(4,), (2, 4), (2, 2, 2)])
@pytest.mark.parametrize("sees", ["context", "vectors"])
def test_an_autoencoder_comes_back(tmp_path: Path, ratios: tuple[int, ...], sees: str) -> None:
    model = small_model(ratios, sees=sees, level_dropout=0.25).eval()
    model.save_pretrained(tmp_path / "saved", image_size=SIZE, classes=("cat", "dog"))
    loaded = Autoencoder.from_pretrained(tmp_path / "saved")
    assert loaded.level_names == model.level_names
    assert (loaded.description.image_size, loaded.description.classes) == (SIZE, ("cat", "dog"))
    images = pictures(2, *SIZE)
    again, expected = loaded(images), model(images)
    assert torch.equal(again.reconstruction, expected.reconstruction)
    assert all(torch.equal(again.codes[name], code) for name, code in expected.codes.items())


def test_what_a_folder_said_is_said_again_and_can_be_changed(tmp_path: Path) -> None:
    small_prior("bottom").save_pretrained(tmp_path / "one", **ABOUT, held_out_nats=1.25)
    loaded = Prior.from_pretrained(tmp_path / "one")
    copy.deepcopy(loaded).save_pretrained(tmp_path / "two", held_out_nats=0.5)
    again = Prior.from_pretrained(tmp_path / "two")
    assert again.description == loaded.description.model_copy(update={"held_out_nats": 0.5})


# --- precision and device -------------------------------------------------------------------------------------------


def _rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.float64) for name, tensor in tensors.items()}


def test_weights_in_bfloat16_load_in_float32_and_are_the_same_numbers(tmp_path: Path) -> None:
    model = small_model((2, 4)).eval().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half", image_size=SIZE)
    assert load_file(tmp_path / "half" / "model.safetensors")["decoder.0.weight"].dtype == torch.bfloat16
    loaded = Autoencoder.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    one, other = _rounded(loaded.state_dict()), _rounded(model.state_dict())
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    # The same arithmetic on the same numbers.
    images = pictures(2, *SIZE)
    assert torch.equal(loaded(images).reconstruction, copy.deepcopy(model).float()(images).reconstruction)


def test_weights_are_loaded_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    prior = small_prior("bottom").to(torch.bfloat16)
    prior.save_pretrained(tmp_path / "half", **ABOUT)
    loaded = Prior.from_pretrained(tmp_path / "half", dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    codes, condition = codes_of("bottom", 2), condition_of("bottom", 2)
    assert torch.equal(loaded(codes, condition), prior(codes, condition))


@pytest.mark.parametrize("kind", ["vector", "sim", "gumbel"])
def test_codebooks_stay_in_float32_whatever_the_module_was_cast_to(tmp_path: Path, kind: str) -> None:
    quantizer = QUANTIZERS[kind]().eval()
    latents = torch.randn(2, DIMENSION, 7)
    codes = quantizer.encode(latents)
    quantizer.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert torch.equal(Quantizer.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).encode(latents), codes)


def test_weights_in_float64_stay_so(tmp_path: Path) -> None:
    quantizer = SimQuantizer(codebook_size=7, code_dimension=3).double()
    quantizer.save_pretrained(tmp_path / "saved")
    loaded = SimQuantizer.from_pretrained(tmp_path / "saved")
    assert loaded.precision.dtype == torch.float64
    assert torch.equal(loaded.fixed_vectors, quantizer.fixed_vectors)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_a_gpu_load_on_a_cpu_and_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_model((2, 4)).eval().to("cuda", dtype)
    model.save_pretrained(tmp_path / "saved", image_size=SIZE)
    loaded = Autoencoder.from_pretrained(tmp_path / "saved")
    one, other = _rounded(loaded.state_dict()), _rounded(model.cpu().state_dict())
    assert {tensor.device.type for tensor in one.values()} == {"cpu"}
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    back = Autoencoder.from_pretrained(tmp_path / "saved", device="cuda", dtype=dtype)
    assert {parameter.device.type for parameter in back.parameters()} == {"cuda"}


# --- what cannot be saved -------------------------------------------------------------------------------------------


class OwnQuantizer(VectorQuantizer):
    """Of a user."""


def _by_hand() -> Autoencoder:
    model = small_model((2,))
    level: Level = model.levels["top"]  # type: ignore[assignment]
    return Autoencoder(levels=[level], decoder=model.decoder)


def _changed() -> Autoencoder:
    model = small_model((2,))
    model.decoder = torch.nn.Conv2d(3, 2, 1)
    return model


UNSAVED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "own class": (
        OwnQuantizer(codebook_size=7, code_dimension=3),
        {},
        "no configuration makes a OwnQuantizer, .* gumbel",
    ),
    "row of several": (
        ResidualQuantizer(
            quantizers=[VectorQuantizer(codebook_size=7, code_dimension=3, decay=decay) for decay in (0.9, 0.8)]
        ),
        {},
        "quantizers of a row that differ .* save each of them",
    ),
    "by hand": (_by_hand(), {"image_size": SIZE}, "put together by hand .* build_autoencoder, or save its state_dict"),
    "changed": (_changed(), {"image_size": SIZE}, "would not load again, since this one lacks .*: a part was replaced"),
    "own prior": (
        type("Own", (PixelCNNPrior,), {})(codebook_size=7),
        ABOUT,
        "no configuration makes this Own, .* pixelcnn",
    ),
    "other axes": (
        TransformerPrior(codebook_size=7, width=8, layers=1, heads=2, spatial_dims=1),
        ABOUT,
        "grid must have one length for each of the 1 axes of the prior; received 2",
    ),
    "no size": (small_model((2,)), {}, r"an autoencoder is saved with image_size, which .*; pass image_size=\.\.\. to"),
    "nothing of a prior": (
        small_prior(),
        {"level": "top"},
        "a prior is saved with grid, image_size, encoder_hash, which",
    ),
    "unknown": (
        small_model((2,)),
        {"size": 3},
        "an autoencoder is saved with image_size, classes, about; received size",
    ),
    "nothing to say": (
        SimQuantizer(codebook_size=7, code_dimension=3),
        {"x": 3},
        "saved with about; received x",
    ),
    "malformed": (small_model((2,)), {"image_size": (0, 3)}, "an autoencoder cannot be described: image_size.0: "),
    "other classes": (
        small_prior(),
        {**ABOUT, "classes": ("cat",)},
        "must name the 3 classes of the prior; received 1",
    ),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_what_cannot_be_saved_says_why(tmp_path: Path, name: str) -> None:
    model, about, sentence = UNSAVED[name]
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        model.save_pretrained(tmp_path / "saved", **about)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    quantizer = SimQuantizer(codebook_size=7, code_dimension=3)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).write_text("x")
    with pytest.raises(StorageError, match=r"photos cannot be written: .* holds other things, a.png and 1 more; what"):
        quantizer.save_pretrained(tmp_path / "photos")
    with pytest.raises(StorageError, match="a file of that name stands there"):
        quantizer.save_pretrained(tmp_path / "photos" / "a.png")
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["a.png", "b.png"]


def test_an_earlier_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    card = ModelCard(pictures={"A picture": Path(__file__).parents[1] / "docs" / "digits-samples.png"})
    SimQuantizer(codebook_size=7, code_dimension=3).save_pretrained(tmp_path / "saved", card=card)
    assert (tmp_path / "saved" / "pictures").is_dir()
    SimQuantizer(codebook_size=11, code_dimension=3).save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == FILES
    assert Quantizer.from_pretrained(str(tmp_path / "saved")).codebook_size == 11


# --- what cannot be loaded ------------------------------------------------------------------------------------------


def test_a_class_loads_its_own_kind(tmp_path: Path) -> None:
    GumbelQuantizer(codebook_size=7, code_dimension=3).save_pretrained(tmp_path / "saved")
    with pytest.raises(
        CheckpointError, match="saved holds a GumbelQuantizer, not a SimQuantizer; load it by that class"
    ):
        SimQuantizer.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("found", ["quantizer", "autoencoder", "prior"])
@pytest.mark.parametrize("wanted", [Quantizer, Autoencoder, Prior])
def test_another_kind_of_model_is_named(tmp_path: Path, found: str, wanted: Any) -> None:
    models = {"quantizer": QUANTIZERS["vector"](), "autoencoder": small_model((2,)), "prior": small_prior()}
    about = {"quantizer": {}, "autoencoder": {"image_size": SIZE}, "prior": ABOUT}
    models[found].save_pretrained(tmp_path / "saved", **about[found])
    if wanted.kind_of_model == found:
        assert wanted.from_pretrained(tmp_path / "saved")
        return
    sentence = f"no {wanted.kind_of_model} in .*: what stands there is of kind {found}, which {found.capitalize()}.from"
    with pytest.raises(CheckpointError, match=sentence):
        wanted.from_pretrained(tmp_path / "saved")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    VectorQuantizer(codebook_size=7, code_dimension=3).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_newer_format_is_refused(saved: Path) -> None:
    _edit(saved, format_version=2)
    with pytest.raises(
        CheckpointError, match=r"format_version 2; this version of hvq reads 1: a newer .* upgrade hvq$"
    ):
        Quantizer.from_pretrained(saved)
    _edit(saved, format_version=0)
    with pytest.raises(CheckpointError, match=r"has format_version 0; this version of hvq reads 1$"):
        Quantizer.from_pretrained(saved)


def test_a_configuration_that_no_model_has_is_refused(saved: Path) -> None:
    _edit(saved, quantizer={"kind": "vector", "heads": 2})
    with pytest.raises(CheckpointError, match=r"quantizer configuration in .*saved: .*heads"):
        Quantizer.from_pretrained(saved)
    _edit(saved, quantizer={"kind": "__import__('os').system('true')"})
    with pytest.raises(CheckpointError, match=r"quantizer configuration in .*saved: quantizer: "):
        Quantizer.from_pretrained(saved)


def test_weights_of_another_dimension_are_named(saved: Path) -> None:
    _edit(saved, code_dimension=5)
    with pytest.raises(
        CheckpointError, match=r"has head_codebooks.0.* of shape \[7, 3\], .* of code dimension 3, and .* says 5$"
    ):
        Quantizer.from_pretrained(saved)


def test_a_tensor_of_another_name_is_named(saved: Path) -> None:
    file = saved / "model.safetensors"
    save_file({**load_file(file), "more": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"quantizer at .*saved has the unknown tensor more; "):
        Quantizer.from_pretrained(saved)


def test_code_in_a_folder_is_never_run(saved: Path) -> None:
    for name in ("modeling.py", "__init__.py", "sitecustomize.py"):
        (saved / name).write_text("raise SystemExit('was run')")
    _edit(saved, quantizer={"kind": "vector"})
    assert Quantizer.from_pretrained(saved).codebook_size == 7
    _edit(saved, auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(CheckpointError, match="auto_map"):
        Quantizer.from_pretrained(saved)


# --- the hub --------------------------------------------------------------------------------------------------------


def test_what_is_published_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = make_hub(tmp_path / "hub", monkeypatch)
    model = small_model((2, 4)).eval()
    address = model.push_to_hub("owner/name", private=True, token="t", commit_message="first", image_size=SIZE)
    assert address == "https://hub.example/owner/name"
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo", "upload_folder"]
    assert hub.calls[1][1]["private"] is True
    assert hub.calls[2][1]["commit_message"] == "first"
    model.save_pretrained(tmp_path / "saved", image_size=SIZE)
    for name in FILES[1:]:
        assert (hub.folder / "owner" / "name" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()
    assert 'from_pretrained("owner/name")' in (hub.folder / "owner" / "name" / "README.md").read_text()
    loaded = Autoencoder.from_pretrained("owner/name", revision="main", token="t")
    assert hub.calls[-1] == ("snapshot_download", {"repo_id": "owner/name", "revision": "main", "token": "t"})
    assert loaded.describe() == model.describe(image_size=SIZE)


def test_a_part_of_a_repository_is_loaded_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = make_hub(tmp_path / "hub", monkeypatch)
    small_model((2,)).save_pretrained(hub.folder / "owner" / "name" / "autoencoder", image_size=SIZE)
    small_prior().save_pretrained(hub.folder / "owner" / "name" / "priors" / "top", **{**ABOUT, "level": "top"})
    assert Prior.from_pretrained("owner/name", subfolder="priors/top").description.level == "top"
    assert not (hub.folder / "cache" / "owner" / "name" / "autoencoder").exists()
    whole = hub.folder / "owner" / "name"
    assert Autoencoder.from_pretrained(whole, subfolder="autoencoder/").level_names == ("top",)
    with pytest.raises(
        CheckpointError, match=r"no prior in .*name, which holds a whole .* subfolder='priors/top', or load"
    ):
        Prior.from_pretrained(whole)
