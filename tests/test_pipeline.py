"""The whole system as one object: what it returns, and that nothing depends on how much is asked for at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hvq
from hvq import HierarchicalVQ
from hvq.autoencoders import convolutional_autoencoder
from hvq.errors import CheckpointError, ConfigurationError, DataError, HVQError
from hvq.priors import SamplingOptions
from hvq.storage import Hierarchy
from tests.runs import CLASSES, HELD_OUT_IMAGES, TrainedRun

COUNTS = (1, 2, 7, 11)


@pytest.fixture(scope="module")
def system(trained_run: TrainedRun) -> HierarchicalVQ:
    return HierarchicalVQ.from_pretrained(trained_run.run.path, chunk_size=7)


@pytest.fixture(scope="module")
def images(trained_run: TrainedRun) -> Tensor:
    source = trained_run.sources.validation
    return torch.stack([source.image(i) for i in range(HELD_OUT_IMAGES)]).float() / 255


def test_it_is_the_packages_face() -> None:
    assert hvq.HierarchicalVQ is HierarchicalVQ


def test_it_says_what_it_holds(system: HierarchicalVQ) -> None:
    assert system.level_names == ("top", "bottom")
    assert system.classes == CLASSES


def test_codes_are_those_of_the_autoencoder(system: HierarchicalVQ, images: Tensor) -> None:
    codes = system.encode(images)
    assert list(codes) == ["top", "bottom"]
    assert {name: (code.dtype, tuple(code.shape)) for name, code in codes.items()} == {
        "top": (torch.int64, (HELD_OUT_IMAGES, 2, 2)),
        "bottom": (torch.int64, (HELD_OUT_IMAGES, 4, 4)),
    }
    expected = system.hierarchy.autoencoder.encode(images[:7] * 2 - 1)
    assert all(torch.equal(codes[name][:7], expected[name]) for name in codes)


def test_large_images_go_in_tiles(system: HierarchicalVQ) -> None:
    pictures = torch.rand(3, 1, 21, 301)
    whole = system.encode(pictures)
    tiled = system.encode(pictures, tile=152)
    agreement = [float((tiled[name] == whole[name]).double().mean()) for name in whole]
    assert list(tiled) == list(whole)
    assert min(agreement) > 0.995, "but for near-ties"
    rebuilt = system.decode(whole, size=(21, 301), tile=152)
    torch.testing.assert_close(rebuilt, system.decode(whole, size=(21, 301)), rtol=0, atol=1e-5)
    again = system.reconstruct(pictures[:1], tile=152, absent=["bottom"])
    assert torch.equal(
        again, system.decode({n: c[:1] for n, c in tiled.items()}, size=(21, 301), absent=["bottom"], tile=152)
    )
    with pytest.raises(ConfigurationError, match="tiles must have at least"):
        system.encode(pictures, tile=16)


def test_images_are_those_of_the_autoencoder(system: HierarchicalVQ, images: Tensor) -> None:
    restored = system.reconstruct(images)
    expected = system.hierarchy.autoencoder(images[:7] * 2 - 1).reconstruction
    assert torch.equal(restored[:7], ((expected + 1) / 2).clamp(0, 1))
    assert torch.equal(restored, system.decode(system.encode(images)))
    assert 0 <= float(restored.min()) <= float(restored.max()) <= 1
    # Nearer than one grey for each image, however short the training was.
    assert (restored - images).square().mean() < (images - images.mean(dim=(1, 2, 3), keepdim=True)).square().mean()


@pytest.mark.parametrize("count", COUNTS)
def test_nothing_depends_on_how_many_images_there_are(system: HierarchicalVQ, images: Tensor, count: int) -> None:
    codes, some = system.encode(images), system.encode(images[:count])
    assert all(torch.equal(some[name], codes[name][:count]) for name in codes)
    assert torch.equal(system.decode(some), system.decode(codes)[:count])
    assert torch.equal(system.reconstruct(images[:count]), system.reconstruct(images)[:count])


@pytest.mark.parametrize("count", COUNTS)
def test_a_sample_depends_on_seed_number_and_class_alone(system: HierarchicalVQ, count: int) -> None:
    labels = [i % 3 for i in range(13)]
    samples = system.sample(labels, seed=5)
    assert samples.shape == (13, 1, 16, 16)
    assert torch.equal(system.sample(labels[:count], seed=5), samples[:count])
    others = [(label + 1) % 3 for label in labels[: count - 1]]
    assert torch.equal(system.sample([*others, labels[count - 1]], seed=5)[-1], samples[count - 1])
    assert not torch.equal(system.sample(labels, seed=6), samples)


def test_samples_without_classes(system: HierarchicalVQ) -> None:
    assert torch.equal(system.sample(3), system.sample([-1, -1, -1]))


def test_the_most_probable_codes_need_no_noise(system: HierarchicalVQ) -> None:
    options = dict.fromkeys(("top", "bottom"), SamplingOptions(temperature=0))
    assert torch.equal(system.sample([0, 1, 2], options=options), system.sample([0, 1, 2], seed=9, options=options))


def test_guidance_is_an_option_of_each_level(system: HierarchicalVQ) -> None:
    labels = [0, 1, 2, -1] * 5
    plain = system.sample(labels, seed=5)
    none = dict.fromkeys(("top", "bottom"), SamplingOptions(guidance=1.0))
    assert torch.equal(system.sample(labels, seed=5, options=none), plain)
    guided = system.sample(labels, seed=5, options=dict.fromkeys(("top", "bottom"), SamplingOptions(guidance=6.0)))
    assert torch.equal(guided[3::4], plain[3::4])
    assert not torch.equal(guided, plain)


def test_given_codes_are_decoded_and_the_rest_is_drawn(system: HierarchicalVQ, images: Tensor) -> None:
    codes = system.encode(images[:5])
    rebuilt = (system.decode(codes) * 255).round() / 255
    assert torch.equal(system.sample(5, given=codes), rebuilt)
    finer = system.sample(5, given={"top": codes["top"]})
    assert not torch.equal(finer, rebuilt)
    assert torch.equal(system.sample(5, given={"top": codes["top"]}, seed=0), finer)
    everywhere = torch.ones(5, 2, 2, dtype=torch.bool)
    assert torch.equal(system.sample(5, fixed={"top": (codes["top"], everywhere)}), finer)


def test_inpainting_keeps_what_is_kept_at_every_level(system: HierarchicalVQ, images: Tensor) -> None:
    some, labels = images[:5], [i % 3 for i in range(5)]
    codes = system.encode(some)
    everything = torch.ones(5, 16, 16, dtype=torch.bool)
    rebuilt = (system.decode(codes) * 255).round() / 255
    assert torch.equal(system.inpaint(some, everything, labels=labels, seed=3), rebuilt)
    assert torch.equal(system.inpaint(some, ~everything, labels=labels, seed=3), system.sample(labels, seed=3))
    # Without the pixels of the first 5 columns: of 8 the first column of cells goes, of 4 the first two.
    mask = everything.clone()
    mask[:, :, :5] = False
    kept = {"top": torch.ones(5, 2, 2, dtype=torch.bool), "bottom": torch.ones(5, 4, 4, dtype=torch.bool)}
    kept["top"][:, :, 0] = False
    kept["bottom"][:, :, :2] = False
    expected = system.sample(labels, seed=3, fixed={name: (codes[name], kept[name]) for name in ("bottom", "top")})
    found = system.inpaint(some, mask, labels=labels, seed=3)
    assert torch.equal(found, expected)
    assert not torch.equal(found, rebuilt)
    assert torch.equal(system.inpaint(some[:2], mask[:2], labels=labels[:2], seed=3), found[:2])
    assert torch.equal(system.inpaint(some, mask, seed=3), system.inpaint(some, mask, labels=[-1] * 5, seed=3))
    assert system.inpaint(some[:0], mask[:0]).shape == (0, 1, 16, 16)


def test_inpainting_that_does_not_fit_is_refused(system: HierarchicalVQ, images: Tensor) -> None:
    mask = torch.ones(3, 16, 16, dtype=torch.bool)
    with pytest.raises(DataError, match=r"the mask must be bool \[3, 16, 16\], True where .* torch.float32 \[3"):
        system.inpaint(images[:3], mask.float())
    with pytest.raises(DataError, match=r"received torch.bool \[2, 16, 16\]"):
        system.inpaint(images[:3], mask[:2])
    with pytest.raises(DataError, match="images of 16x16, the size that the priors were trained on; received 24x16"):
        system.inpaint(torch.rand(3, 1, 24, 16), torch.ones(3, 24, 16, dtype=torch.bool))
    with pytest.raises(DataError, match="one label, -1 for none; received 3 images and 2 labels"):
        system.inpaint(images[:3], mask, labels=[0, 1])


def test_a_mapping_has_no_order(system: HierarchicalVQ, images: Tensor) -> None:
    codes = system.encode(images)
    assert torch.equal(system.decode({name: codes[name] for name in ("bottom", "top")}), system.decode(codes))


@pytest.mark.parametrize("size", [(8, 8), (17, 23), (9, 40)])
def test_any_size_from_the_coarsest_stride_up(system: HierarchicalVQ, size: tuple[int, int]) -> None:
    images = torch.rand(3, 1, *size)
    assert system.reconstruct(images).shape == images.shape
    assert torch.equal(system.decode(system.encode(images), size=size), system.reconstruct(images))


def test_levels_may_be_left_out(system: HierarchicalVQ, images: Tensor) -> None:
    whole = system.reconstruct(images)
    errors = [float((system.reconstruct(images, absent=[name]) - images).square().mean()) for name in ("top", "bottom")]
    assert min(errors) > float((whole - images).square().mean())
    codes = system.encode(images)
    other = {**codes, "bottom": torch.zeros_like(codes["bottom"])}
    assert torch.equal(system.decode(other, absent=["bottom"]), system.decode(codes, absent=["bottom"]))


def test_nothing_gives_nothing(system: HierarchicalVQ) -> None:
    codes = system.encode(torch.zeros(0, 1, 16, 24))
    assert {name: tuple(code.shape) for name, code in codes.items()} == {"top": (0, 2, 3), "bottom": (0, 4, 6)}
    assert system.decode(codes, size=(16, 24)).shape == (0, 1, 16, 24)
    assert system.sample([]).shape == (0, 1, 16, 16)


def test_encoding_leaves_images_and_modes_alone(system: HierarchicalVQ, images: Tensor) -> None:
    before = images.clone()
    system.reconstruct(images.double())
    assert torch.equal(images, before)
    assert not system.hierarchy.autoencoder.training


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda images: images * 2 - 1, r"images must be in \[0, 1\]; received values in \[-"),
        (lambda images: images * 255, r"images must be in \[0, 1\]; received values in \[.*: rescale them"),
        (lambda images: images * torch.nan, r"images must be in \[0, 1\]; received values in \[nan, nan\]"),
        (lambda images: (images * 255).byte(), r"floating point \[B, 1, H, W\] in \[0, 1\]; received torch.uint8"),
        (lambda images: images.expand(-1, 3, -1, -1), r"\[B, 1, H, W\] in \[0, 1\]; received .* \[23, 3, 16, 16\]"),
        (lambda images: images[0], r"received torch.float32 \[1, 16, 16\]"),
        (lambda images: images[..., :7], "images of 16x7 are smaller than the coarsest stride 8"),
    ],
)
def test_images_that_are_not_what_they_should_be(
    system: HierarchicalVQ, images: Tensor, change: Callable[[Tensor], Tensor], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        system.encode(change(images))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda codes: {"top": codes["top"]}, "codes must name exactly the levels top, bottom; missing bottom"),
        (lambda codes: {**codes, "middle": codes["top"]}, "unknown middle"),
        (lambda codes: {}, "missing top, bottom"),
        (lambda codes: {**codes, "top": codes["top"] + 11}, r"codes must be in 0 \.\. 10; received"),
        (lambda codes: {**codes, "bottom": codes["bottom"][:, :3]}, "codes of level bottom must be on a grid of 4x4"),
        (lambda codes: {**codes, "bottom": codes["bottom"][:5]}, "at every level; received 23 of top, 5 of bottom"),
    ],
)
def test_codes_that_are_not_what_they_should_be(
    system: HierarchicalVQ,
    images: Tensor,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    sentence: str,
) -> None:
    with pytest.raises(HVQError, match=sentence):
        system.decode(change(system.encode(images)))


def test_labels_and_levels_that_there_are_not(system: HierarchicalVQ) -> None:
    with pytest.raises(DataError, match=r"labels must be classes of this prior \(0 \.\. 2\), or -1; received 0 \.\. 3"):
        system.sample([0, 3])
    with pytest.raises(DataError, match="options name botom, which is not a level; the levels are top, bottom"):
        system.sample([0], options={"botom": SamplingOptions()})
    with pytest.raises(DataError, match="absent names botom; the levels are top, bottom"):
        system.decode({"top": torch.zeros(1, 2, 2).long(), "bottom": torch.zeros(1, 4, 4).long()}, absent=["botom"])


def test_without_priors_it_encodes_and_says_what_sampling_takes(
    copied_run: TrainedRun, system: HierarchicalVQ, images: Tensor
) -> None:
    shutil.rmtree(copied_run.run.prior("bottom"))
    half = HierarchicalVQ.from_pretrained(copied_run.run.path, chunk_size=7)
    assert torch.equal(half.reconstruct(images), system.reconstruct(images))
    with pytest.raises(CheckpointError, match="sampling takes a prior for every level; train that of bottom first"):
        half.sample([0])
    finest = {"bottom": half.encode(images[:2])["bottom"]}
    assert torch.equal(half.sample([0, 1], given=finest), system.sample([0, 1], given=finest))


@pytest.mark.parametrize(
    ("quantizer", "shape"), [({"kind": "residual", "num_quantizers": 2}, (2,)), ({"kind": "gaussian"}, (5,))]
)
def test_levels_with_several_codes_a_position_and_with_none(quantizer: dict[str, Any], shape: tuple[int, ...]) -> None:
    level = {"ratio": 4, "width": 7, "codebook_size": 11, "code_dimension": 5, "quantizer": quantizer}
    autoencoder = convolutional_autoencoder(channels=1, levels={"top": level}, decoder={"width": 7}).eval()
    model = HierarchicalVQ(Hierarchy.of(autoencoder, {}, image_size=(12, 20)), chunk_size=3)
    images = torch.rand(5, 1, 12, 20)
    codes = model.encode(images)
    assert codes["top"].shape == (5, 3, 5, *shape)
    assert model.encode(images[:0])["top"].shape == (0, 3, 5, *shape)
    assert torch.equal(model.decode(codes), model.reconstruct(images))


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no autoencoder in .*: train it first, or check the path"):
        HierarchicalVQ.from_pretrained(tmp_path)
