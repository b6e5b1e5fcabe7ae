"""The folder that an export is: both formats, fixed and free sizes, what its JSON says, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder
from hvq.data.pixels import model_to_unit, unit_to_model
from hvq.errors import ConfigurationError, DataError, HVQError
from hvq.export import ExportDescription, export_autoencoder
from hvq.export.agreement import require_agreement
from hvq.export.description import Format, describe
from hvq.quantizers import GaussianBottleneck, VectorQuantizer
from hvq.storage import RunFolder, save_autoencoder
from hvq.storage.models import AutoencoderDescription
from tests.autoencoders.small import small_config, small_model
from tests.export.small import CHANNELS, Half, one_level, onnx_half, torch_half, two_levels
from tests.runs import run_recipe, tiny_config
from tests.versions import needs_newer_torch

pytestmark = needs_newer_torch

SIZE = (11, 13)
in_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason='needs the packages of the extra "export"',
)
every_format = pytest.mark.parametrize("format", [pytest.param("onnx", marks=in_onnx), "torch_export"])


def halves(folder: Path, description: ExportDescription) -> tuple[Half, Half]:
    load = onnx_half if description.format == "onnx" else torch_half
    return load(folder / description.encoder.file), load(folder / description.decoder.file)


def require_the_same(model: Autoencoder, encode: Half, decode: Half, images: Tensor) -> None:
    with torch.no_grad():
        expected = model.encode(unit_to_model(images))
        codes = encode(images=images)
        assert list(codes) == [f"codes_{level}" for level in model.level_names]
        assert all(torch.equal(codes[f"codes_{level}"], code) for level, code in expected.items())
        decoded = decode(**codes)["images"]
        assert decoded.shape == images.shape
        reconstruction = model_to_unit(model.decode(expected, size=images.shape[2:]))
        assert float((decoded - reconstruction).abs().max()) < 1e-4
        assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1


@every_format
def test_a_size_that_is_padded_within_and_any_batch(format: Format, tmp_path: Path) -> None:
    model, folder = two_levels(), tmp_path / "exported"
    description = export_autoencoder(model, folder, image_size=SIZE, channels=CHANNELS, format=format)
    encode, decode = halves(folder, description)
    for batch in (1, 5):
        require_the_same(model, encode, decode, torch.rand(batch, CHANNELS, *SIZE))
    assert description.agreement is not None
    assert description.agreement.codes == 3 * (3 * 4 + 6 * 8)
    assert description.agreement.differing_codes == 0
    assert description.agreement.image_error < 1e-5
    assert json.loads((folder / "export.json").read_text()) == description.model_dump(mode="json")
    assert {path.name for path in folder.iterdir()} == {
        "export.json",
        description.encoder.file,
        description.decoder.file,
    }


@pytest.mark.parametrize(
    ("format", "sees"), [pytest.param("onnx", "vectors", marks=in_onnx), ("torch_export", "context")]
)
def test_any_size_in_multiples_of_the_coarsest_stride(format: Format, sees: str, tmp_path: Path) -> None:
    model = small_model((2, 3), sees=sees).eval()
    description = export_autoencoder(
        model, tmp_path, image_size=(20, 14), channels=CHANNELS, format=format, dynamic_size=True
    )
    encode, decode = halves(tmp_path, description)
    for batch, height, width in ((1, 12, 30), (3, 42, 18)):
        require_the_same(model, encode, decode, torch.rand(batch, CHANNELS, height, width))


@every_format
@pytest.mark.parametrize("size", [(43,), (5, 7, 11)])
def test_signals_and_volumes(format: Format, size: tuple[int, ...], tmp_path: Path) -> None:
    model = small_model((2, 2), spatial_dims=len(size)).eval()
    for dynamic_size in (False, True):
        folder = tmp_path / f"exported-{dynamic_size}"
        description = export_autoencoder(
            model, folder, image_size=size, channels=CHANNELS, format=format, dynamic_size=dynamic_size
        )
        encode, decode = halves(folder, description)
        other = tuple(4 * n for n in range(3, 3 + len(size)))
        require_the_same(model, encode, decode, torch.rand(3, CHANNELS, *(other if dynamic_size else size)))
        axes = {1: ("4*length",), 3: ("4*depth", "4*height", "4*width")}[len(size)] if dynamic_size else size
        assert description.encoder.inputs["images"].shape == ("batch", CHANNELS, *axes)


def test_the_description_says_names_shapes_and_ranges() -> None:
    model = one_level(VectorQuantizer(codebook_size=17, code_dimension=6, heads=3))
    fixed = describe(model, format="onnx", image_size=(11, 13), channels=2, dynamic_size=False).model_dump(mode="json")
    assert fixed["levels"] == {"top": {"codebook_size": 17, "codes_per_position": 3, "stride": 2}}
    codes = {"codes_top": {"dtype": "int64", "shape": ["batch", 6, 7, 3], "range": [0, 16]}}
    images = {"images": {"dtype": "float32", "shape": ["batch", 2, 11, 13], "range": [0.0, 1.0]}}
    assert fixed["encoder"] == {"file": "encoder.onnx", "inputs": images, "outputs": codes}
    assert fixed["decoder"] == {"file": "decoder.onnx", "inputs": codes, "outputs": images}
    free = describe(two_levels(), format="torch_export", image_size=(8, 8), channels=2, dynamic_size=True)
    assert free.encoder.inputs["images"].shape == ("batch", 2, "4*height", "4*width")
    assert {name: port.shape for name, port in free.encoder.outputs.items()} == {
        "codes_top": ("batch", "height", "width"),
        "codes_bottom": ("batch", "2*height", "2*width"),
    }
    assert free.decoder.file == "decoder.pt2"


def test_an_export_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    model = one_level(VectorQuantizer(codebook_size=5, code_dimension=3))
    arguments: dict[str, Any] = {"channels": CHANNELS, "format": "torch_export"}
    for size in ((4, 6), (8, 6)):
        export_autoencoder(model, tmp_path / "exported", image_size=size, **arguments)
        assert json.loads((tmp_path / "exported" / "export.json").read_text())["image_size"] == list(size)
    with pytest.raises(ConfigurationError, match="is there and is not an export; name a folder that is new or empty"):
        export_autoencoder(model, tmp_path, image_size=(4, 6), **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


@pytest.mark.parametrize(
    ("quantizer", "changes", "fault", "sentence"),
    [
        (GaussianBottleneck(code_dimension=3), {}, ConfigurationError, "an export takes codes, and level top has none"),
        (None, {"format": "tflite"}, ConfigurationError, "format must be onnx or torch_export; received tflite"),
        (None, {"image_size": (1, 6)}, DataError, "images of 1x6 are smaller than the coarsest stride 2"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(
    quantizer: Any, changes: dict[str, Any], fault: type[HVQError], sentence: str, tmp_path: Path
) -> None:
    model = one_level(quantizer or VectorQuantizer(codebook_size=5, code_dimension=3))
    arguments: dict[str, Any] = {"image_size": (4, 6), "channels": CHANNELS, "format": "torch_export", **changes}
    with pytest.raises(fault, match=sentence):
        export_autoencoder(model, tmp_path / "exported", **arguments)
    assert not (tmp_path / "exported").exists()


class Fickle(nn.Module):
    """Of one's own, and not the same for all images."""

    def forward(self, images: Tensor) -> Tensor:
        return -images[:, :, ::2, ::2] if float(images.sum()) > 0 else images[:, :, ::2, ::2]


def test_networks_that_look_at_the_numbers_are_refused(tmp_path: Path) -> None:
    model = one_level(VectorQuantizer(codebook_size=5, code_dimension=CHANNELS))
    model.levels["top"].encoder = Fickle()
    with pytest.raises(ConfigurationError, match="the encoder cannot be exported, for what it does hangs on"):
        export_autoencoder(model, tmp_path, image_size=(4, 6), channels=CHANNELS, format="torch_export")


def test_without_the_packages_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    model = one_level(VectorQuantizer(codebook_size=5, code_dimension=3))
    with pytest.raises(ConfigurationError, match=r'onnxscript is not installed: pip install "hvq\[export\]", or take'):
        export_autoencoder(model, tmp_path, image_size=(4, 6), channels=CHANNELS)


@pytest.mark.parametrize("fault", ["codes", "images"])
def test_an_export_that_says_something_else_is_refused(fault: str) -> None:
    model = two_levels()
    description = describe(model, format="onnx", image_size=SIZE, channels=CHANNELS, dynamic_size=False)

    def encode(images: Tensor) -> dict[str, Tensor]:
        codes = model.encode(unit_to_model(images))
        codes["bottom"][0, 0, 0] += fault == "codes"
        return {f"codes_{level}": code for level, code in codes.items()}

    def decode(codes_top: Tensor, codes_bottom: Tensor) -> dict[str, Tensor]:
        images = model_to_unit(model.decode({"top": codes_top, "bottom": codes_bottom}, size=SIZE))
        return {"images": images + 2e-4 * (fault == "images")}

    with pytest.raises(HVQError, match="1 of 180 codes differ" if fault == "codes" else "images by up to 0.0002"):
        require_agreement(model, description, encode=encode, decode=decode)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The folder of a run that has come as far as an autoencoder."""
    made = RunFolder(tmp_path / "run")
    made.save_config(tiny_config(tmp_path / "images"))
    description = AutoencoderDescription(autoencoder=small_config((2,)), image_size=SIZE)
    save_autoencoder(made.autoencoder, small_model((2,)), description)
    return made


@in_onnx
def test_the_recipe_writes_onnx_unless_told_otherwise(run: RunFolder, tmp_path: Path) -> None:
    outcome = run_recipe("export_model", "--run-dir", run.path, "--to", tmp_path / "exported")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"encoder.onnx, decoder.onnx and export.json are in {tmp_path / 'exported'}" in outcome.out
    assert "126 of 126 codes are the same, and images within" in outcome.out
    assert json.loads((tmp_path / "exported" / "export.json").read_text())["dynamic_size"] is False


def test_the_recipe_hands_its_choices_on(run: RunFolder, tmp_path: Path) -> None:
    words = ("--run-dir", run.path, "--to", tmp_path / "exported", "--format", "torch_export", "--dynamic-size")
    assert run_recipe("export_model", *words).code == 0
    described = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert (described["format"], described["dynamic_size"]) == ("torch_export", True)
    outcome = run_recipe("export_model", "--run-dir", run.path, "--to", run.path)
    assert (outcome.code, outcome.err) == (
        1,
        f"error: {run.path} is there and is not an export; name a folder that is new or empty\n",
    )
