"""Every kind of quantizer that has codes, as a program and as ONNX: the same codes, and images of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from hvq.autoencoders import Autoencoder
from hvq.data.pixels import model_to_unit, unit_to_model
from hvq.export.description import ExportDescription, describe
from hvq.export.modules import CodesToImages, ImagesToCodes
from hvq.export.onnx_models import save_onnx
from hvq.export.programs import export_program
from hvq.quantizers import VectorQuantizer
from tests.export.small import CHANNELS, Half, one_level, onnx_half, stack_of
from tests.quantizers.kinds import CONTINUOUS, KINDS
from tests.versions import needs_newer_torch

pytestmark = needs_newer_torch

# A half of the kinds, each way of making codes among them. As putting a program into ONNX takes seconds, they stand one
# above the other, a level each.
IN_ONNX = [
    "vector",
    "vector cosine",
    "vector projection",
    "residual shared",
    "residual sim",
    "residual finite_scalar",
    "residual lookup_free",
    "finite_scalar projection",
    "lookup_free groups",
    "lookup_free spherical",
    "sim",
    "gumbel",
]


def programs(model: Autoencoder) -> tuple[ExportDescription, ExportedProgram, ExportedProgram]:
    """Both halves, for images of 6x10."""
    described = describe(model, format="onnx", image_size=(6, 10), channels=CHANNELS, dynamic_size=False)
    return (
        described,
        export_program(ImagesToCodes(model), described.encoder.inputs, "encoder"),
        export_program(CodesToImages(model), described.decoder.inputs, "decoder", joined=True),
    )


def require_the_same(model: Autoencoder, encode: Half, decode: Half, batch: int) -> None:
    images = torch.rand(batch, CHANNELS, 6, 10)
    expected = model.encode(unit_to_model(images))
    codes = encode(images=images)
    assert [level for level, code in expected.items() if not torch.equal(codes[f"codes_{level}"], code)] == []
    assert {code.dtype for code in codes.values()} == {torch.int64}
    assert torch.allclose(decode(**codes)["images"], model_to_unit(model.decode(expected)), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CONTINUOUS])
@torch.no_grad()
def test_every_kind_exports_for_any_batch(kind: str) -> None:
    model = one_level(KINDS[kind]().eval())
    _, encoder, decoder = programs(model)
    encode, decode = encoder.module(), decoder.module()
    for batch in (1, 5):
        require_the_same(model, lambda images: encode(images), lambda **codes: {"images": decode(codes)}, batch)


@torch.no_grad()
def test_kinds_are_the_same_in_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = stack_of({kind.replace(" ", "_"): KINDS[kind]() for kind in IN_ONNX})
    described, encoder, decoder = programs(model)
    save_onnx(tmp_path / "encoder.onnx", encoder, described.encoder)
    save_onnx(tmp_path / "decoder.onnx", decoder, described.decoder)
    for batch in (1, 5):
        require_the_same(model, onnx_half(tmp_path / "encoder.onnx"), onnx_half(tmp_path / "decoder.onnx"), batch)


def test_of_equal_vectors_the_first_is_chosen() -> None:
    quantizer = VectorQuantizer(codebook_size=17, code_dimension=3)
    vectors = quantizer.codebooks[0].vectors
    # Where a matrix product puts them, they are rounded otherwise.
    vectors[[16, 5, 11]] = vectors[3].clone()
    model = one_level(quantizer.eval())
    described = describe(model, format="onnx", image_size=(2, 2), channels=CHANNELS, dynamic_size=False)
    with torch.no_grad():
        nn.init.zeros_(model.levels["top"].encoder.weight)
        model.levels["top"].encoder.bias.copy_(vectors[3])
        encoder = export_program(ImagesToCodes(model), described.encoder.inputs, "encoder").module()
        assert encoder(torch.rand(7, CHANNELS, 2, 2))["codes_top"].tolist() == [[[3]]] * 7
    assert bool(quantizer.codebooks[0].alive.all()), "the autoencoder itself is as it was"


@torch.no_grad()
def test_near_ties_are_decided_within_rounding() -> None:
    """Far from the origin float32 is coarse: another code may be chosen, but none that is farther but for rounding."""
    quantizer = VectorQuantizer(codebook_size=301, code_dimension=5)
    vectors = quantizer.codebooks[0].vectors.add_(100.0)
    model = one_level(quantizer.eval())
    latents = vectors[torch.randint(301, (997,))] + torch.randn(997, 5)
    model.levels["top"].encoder = nn.Identity()
    described = describe(model, format="onnx", image_size=(2, 2), channels=5, dynamic_size=False)
    port = described.encoder.inputs["images"].model_copy(update={"shape": ("batch", 5, 1, 1)})
    model.levels["top"].ratio = 1
    encoder = export_program(ImagesToCodes(model), {"images": port}, "encoder").module()
    codes = encoder((latents.view(997, 5, 1, 1) + 1) / 2)["codes_top"].flatten()
    distances = torch.cdist(latents.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    least = distances.amin(dim=1)
    chosen = distances.gather(1, codes.unsqueeze(1)).squeeze(1)
    spread = (latents.double() - vectors.double().mean(dim=0)).square().sum(dim=1).mean()
    # (x + 1) / 2 · 2 - 1 is rounded too, by half a unit in the last place of 100.
    assert bool((chosen - least <= 1e-6 * (least + spread) + 2e-5 * least.sqrt().clamp(min=1)).all())
