from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hvq.autoencoders import (
    Autoencoder,
    AutoencoderLoss,
    Level,
    convolutional_autoencoder,
    weights_channels_last,
)
from hvq.errors import ConfigurationError, DataError, HVQError
from hvq.level_names import default_level_names
from hvq.quantizers import CodebookStep, VectorQuantizer
from tests.autoencoders.small import codebook, pictures, small_model

DEPTHS = {1: (3,), 2: (2, 4), 3: (2, 1, 3), 5: (1, 2, 1, 2, 2), 11: (1,) * 8 + (2, 1, 2)}
either_view = pytest.mark.parametrize("sees", ["context", "vectors", "vectors_throughout"])
any_depth = pytest.mark.parametrize("ratios", DEPTHS.values(), ids=[f"{depth} levels" for depth in DEPTHS])


# --- any number of levels, any size ---


@any_depth
def test_levels_go_coarse_to_fine_each_with_its_own_ratio(ratios: tuple[int, ...]) -> None:
    model = small_model(ratios)
    names = default_level_names(len(ratios))
    result = model(pictures(2, 23, 29))
    assert model.level_names == tuple(result.levels) == tuple(result.codes) == tuple(model.quantizers) == names
    coarsest = math.prod(ratios)
    rows, columns = -(-23 // coarsest), -(-29 // coarsest)
    for i, name in enumerate(names):
        finer = math.prod(ratios[:i])
        assert model.strides[name] == math.prod(ratios[i:])
        if i:
            rows, columns = rows * ratios[i - 1], columns * ratios[i - 1]
        assert result.codes[name].shape == (2, rows, columns), finer
        assert model.grids((23, 29))[name] == (rows, columns)
        assert result.levels[name].vectors.shape[1] == model.quantizers[name].code_dimension
        assert int(result.codes[name].max()) < model.quantizers[name].codebook_size
    assert result.reconstruction.shape == (2, 2, 23, 29)


@any_depth
@either_view
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 3])
def test_decoded_codes_are_the_reconstruction_to_the_last_bit(
    ratios: tuple[int, ...], layout: torch.memory_format, batch: int, sees: str
) -> None:
    model = small_model(ratios, sees=sees).eval().to(memory_format=layout)
    images = pictures(batch, 23, 29).to(memory_format=layout)
    result = model(images)
    codes = model.encode(images)
    assert all(torch.equal(codes[name], result.codes[name]) for name in model.level_names)
    shuffled = {name: codes[name] for name in sorted(codes, reverse=True)}
    with torch.no_grad():
        assert torch.equal(model.decode(shuffled, size=(23, 29)), result.reconstruction)


@given(
    height=st.integers(6, 41),
    width=st.integers(6, 41),
    ratios=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=2).map(tuple),
)
def test_any_size_from_the_coarsest_stride_up_comes_back(height: int, width: int, ratios: tuple[int, ...]) -> None:
    model = small_model(ratios).eval()
    images = pictures(1, height, width)
    with torch.no_grad():
        result = model(images)
        assert result.reconstruction.shape == images.shape
        assert torch.equal(model.decode(model.encode(images), size=(height, width)), result.reconstruction)


def test_the_smallest_size_is_the_coarsest_stride() -> None:
    model = small_model((3, 2)).eval()
    assert model(pictures(1, 6, 7)).reconstruction.shape == (1, 2, 6, 7)
    for height, width in [(5, 7), (7, 5)]:
        with pytest.raises(DataError, match=rf"{height}x{width} are smaller than the coarsest stride 6.*6x6"):
            model(pictures(1, height, width))


def test_codes_at_one_place_see_the_image_around_it_only() -> None:
    """Padding is a reflection, so that codes away from the far edges do not know that there is any."""
    model = small_model((1, 2), residual_blocks=0).eval()
    images = pictures(1, 40, 40)
    whole, cut = model.encode(images), model.encode(images[:, :, :39, :39])
    for name in model.level_names:
        assert torch.equal(cut[name][:, :12, :12], whole[name][:, :12, :12])


def test_double_precision_goes_all_the_way() -> None:
    model = small_model((2, 2)).double()
    result = model(pictures(1, 11, 13, torch.float64))
    assert result.reconstruction.dtype == torch.float64
    assert all(level.losses["commitment"].dtype == torch.float64 for level in result.levels.values())


def test_bfloat16_weights_decode_what_they_encode() -> None:
    model = small_model((2, 2)).to(torch.bfloat16).eval()
    assert codebook(model.quantizers["top"]).dtype == torch.float32
    images = pictures(1, 11, 13, torch.bfloat16)
    result = model(images)
    assert torch.equal(model.decode(result.codes, size=(11, 13)), result.reconstruction)


def test_forward_is_repeatable_and_writes_nothing() -> None:
    model = small_model((2, 2), level_dropout=0.3)
    images = pictures(3, 11, 13)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = model(images), model(images)
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator), "no random draw"


def test_weights_alone_carry_the_model() -> None:
    one, other = small_model((2, 1, 2), level_dropout=0.1).eval(), small_model((2, 1, 2), level_dropout=0.1).eval()
    images = pictures(1, 11, 13)
    assert not torch.equal(one(images).reconstruction, other(images).reconstruction)
    other.load_state_dict(dict(sorted(one.state_dict().items())))
    assert torch.equal(one(images).reconstruction, other(images).reconstruction)


def test_exports_with_its_named_results() -> None:
    model = small_model((2, 2)).eval()
    images = pictures(2, 11, 13)
    exported = torch.export.export(model, (images,)).module()(images)
    expected = model(images)
    # Transposed convolutions are exported as the one operation that they are, and so rounded otherwise.
    assert torch.allclose(exported.reconstruction, expected.reconstruction, atol=1e-6)
    assert all(torch.equal(exported.codes[name], code) for name, code in expected.codes.items())


# --- coarser levels alone ---


@any_depth
@either_view
@pytest.mark.parametrize("level_dropout", [0.0, 0.5])
def test_prefixes_are_what_decoding_with_the_finer_levels_absent_gives(
    ratios: tuple[int, ...], sees: str, level_dropout: float
) -> None:
    model = small_model(ratios, sees=sees, level_dropout=level_dropout).eval()
    images, names = pictures(3, 23, 29), default_level_names(len(ratios))
    with torch.no_grad():
        result, plain = model(images, prefixes=True), model(images)
        assert list(result.prefixes) == list(names[:-1])
        for i, name in enumerate(names[:-1]):
            alone = model.decode(result.codes, size=(23, 29), absent=names[i + 1 :])
            assert torch.equal(result.prefixes[name], alone), name
    assert torch.equal(result.reconstruction, plain.reconstruction)
    assert plain.prefixes == {}


def test_prefixes_are_of_all_samples_whatever_each_is_decoded_from() -> None:
    model = small_model((2, 1, 2), level_dropout=0.5).eval()
    images, kept = pictures(3, 8, 12), torch.tensor([1, 2, 3])
    result, plain = model(images, kept, prefixes=True), model(images, prefixes=True)
    assert all(torch.equal(result.prefixes[name], plain.prefixes[name]) for name in ("top", "middle"))
    assert torch.equal(result.reconstruction[0], plain.prefixes["top"][0])
    assert torch.equal(result.reconstruction[1], plain.prefixes["middle"][1])


def test_prefixes_take_no_second_pass_of_the_encoders() -> None:
    model, passes = small_model((2, 1, 2)), []
    for level in model.levels.values():
        level.encoder.register_forward_hook(lambda *_: passes.append("encoder"))
        level.quantizer.register_forward_hook(lambda *_: passes.append("quantizer"))
    model.decoder.register_forward_hook(lambda *_: passes.append("decoder"))
    model(pictures(1, 8, 12), prefixes=True)
    assert [passes.count(part) for part in ("encoder", "quantizer", "decoder")] == [3, 3, 3]


# --- learned scale ---


def test_a_learned_scale_is_of_each_channel_and_ties_no_codes() -> None:
    plain = convolutional_autoencoder(channels=5, levels={"top": {"ratio": 2}})
    model = convolutional_autoencoder(channels=5, levels={"top": {"ratio": 2}}, decoder={"learn_scale": True})
    assert model.state_dict().keys() - plain.state_dict().keys() == {"log_scale"}
    assert model.encoding_tensors().keys() == plain.encoding_tensors().keys()
    result = model(torch.zeros(1, 5, 4, 6))
    assert result.log_scale is model.log_scale
    assert result.log_scale.exp().tolist() == pytest.approx([0.1] * 5)
    assert plain(torch.zeros(1, 5, 4, 6)).log_scale is None


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda codes: {"top": codes["top"]}, "missing bottom"),
        (lambda codes: {**codes, "side": codes["top"]}, "unknown side"),
    ],
)
def test_missing_and_unknown_levels_are_refused(change: Any, fault: str) -> None:
    model = small_model((2, 2)).eval()
    with pytest.raises(HVQError, match=fault):
        model.decode(change(model.encode(pictures(1, 8, 12))))


def test_grids_that_do_not_belong_together_are_refused_with_the_numbers() -> None:
    model = small_model((2, 2)).eval()
    codes = model.encode(pictures(1, 8, 12))
    with pytest.raises(DataError, match=r"bottom must be on a grid of 4x6 for images of 8x12; it is 3x6"):
        model.decode({**codes, "bottom": codes["bottom"][:, :3]})
    with pytest.raises(DataError, match=r"top must be on a grid of 3x3 for images of 9x12; it is 2x3"):
        model.decode(codes, size=(9, 12))


def test_codes_beyond_the_codebook_are_refused() -> None:
    model = small_model((2,)).eval()
    with pytest.raises(DataError, match=r"0 \.\. 10"):
        model.decode({"top": torch.full((1, 3, 3), 11)})


def test_absent_levels_must_exist() -> None:
    model = small_model((2, 2)).eval()
    with pytest.raises(DataError, match="absent names side; the levels are top, bottom"):
        model.decode(model.encode(pictures(1, 8, 12)), absent=["side"])


def test_latents_of_a_level_that_is_not_there_are_refused() -> None:
    with pytest.raises(DataError, match="no level 'side'"):
        small_model((2,)).latents(pictures(1, 8, 12), "side")


def bare_level(name: str) -> Level:
    return Level(
        name=name,
        ratio=1,
        encoder=nn.Identity(),
        projection=nn.Identity(),
        quantizer=VectorQuantizer(codebook_size=3, code_dimension=2),
        merge=None,
    )


@pytest.mark.parametrize("names", [[], ["top", "top"], ["type"], ["a.b"], [""]])
def test_level_names_must_be_there_differ_and_be_usable(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="level"):
        Autoencoder(levels=[bare_level(name) for name in names], decoder=nn.Identity())


# --- padding ---


def test_padding_is_out_of_codes_counted_and_losses() -> None:
    """13 x 17 images, padded to 16 x 20, cover 7 x 9 of the bottom's 8 x 10 positions, and all of the top's 4 x 5."""
    model = small_model((2, 2)).double()
    images = pictures(3, 13, 17, torch.float64)
    result = model(images)
    assert int(result.levels["top"].statistics[0].counts.sum()) == 3 * 4 * 5
    assert int(result.levels["bottom"].statistics[0].counts.sum()) == 3 * 7 * 9
    latents = model.latents(images, "bottom")
    assert latents.shape == (3 * 7 * 9, model.quantizers["bottom"].code_dimension)
    alone = model.quantizers["bottom"](latents.T.unsqueeze(0))
    assert torch.equal(alone.statistics[0].counts, result.levels["bottom"].statistics[0].counts)
    assert torch.allclose(alone.statistics[0].sums, result.levels["bottom"].statistics[0].sums, atol=1e-12)
    assert torch.allclose(alone.losses["commitment"], result.levels["bottom"].losses["commitment"], rtol=1e-12)
    inside = result.codes["bottom"][:, :7, :9]
    assert torch.equal(alone.codes.flatten(), inside.flatten())
    counted = model.without_padding(dict(reversed(result.codes.items())), (13, 17))
    assert list(counted) == ["top", "bottom"]
    assert torch.equal(counted["top"], result.codes["top"])
    assert torch.equal(counted["bottom"], inside)


def test_latents_without_padding_are_all_of_them() -> None:
    model = small_model((2, 2))
    assert model.latents(pictures(3, 8, 12), "top").shape == (3 * 2 * 3, 3)
    assert model.latents(pictures(3, 8, 12), "bottom").shape == (3 * 4 * 6, 4)


# --- absent levels ---


@either_view
@pytest.mark.parametrize("level_dropout", [0.0, 0.2])
def test_absent_levels_are_replaced_by_their_vector_in_every_position(level_dropout: float, sees: str) -> None:
    model = small_model((2, 2), level_dropout=level_dropout, sees=sees).eval()
    images = pictures(1, 8, 12)
    codes = model.encode(images)
    without = model.decode(codes, absent=["bottom"])
    other = {"top": codes["top"], "bottom": torch.zeros_like(codes["bottom"])}
    assert torch.equal(model.decode(other, absent=["bottom"]), without), "absent codes give the grid alone"
    assert not torch.equal(model.decode(codes), without)
    quantizer = model.quantizers["bottom"]
    stand_in = model.levels["bottom"].absent if level_dropout else quantizer.mean_vector()
    with torch.no_grad():
        codebook(quantizer)[0] = stand_in
    assert torch.equal(model.decode(other), without)


@either_view
@pytest.mark.parametrize("level_dropout", [0.0, 0.2])
def test_samples_are_decoded_from_their_kept_levels_alone(level_dropout: float, sees: str) -> None:
    model = small_model((2, 1, 2), level_dropout=level_dropout, sees=sees).eval()
    images = pictures(3, 11, 13)
    kept = model(images, torch.tensor([1, 2, 3]))
    codes = model.encode(images)
    for i, absent in enumerate([("middle", "bottom"), ("bottom",), ()]):
        expected = model.decode(codes, size=(11, 13), absent=absent)[i]
        assert torch.allclose(kept.reconstruction[i], expected, atol=1e-6)
    whole = model(images)
    assert not torch.allclose(kept.reconstruction[0], whole.reconstruction[0], atol=1e-4)


def test_what_is_absent_changes_no_codes_losses_or_statistics() -> None:
    model = small_model((2, 1, 2), level_dropout=0.5)
    images = pictures(3, 11, 13)
    whole, kept = model(images), model(images, torch.tensor([1, 2, 1]))
    for name in model.level_names:
        assert torch.equal(kept.codes[name], whole.codes[name])
        assert torch.equal(kept.levels[name].statistics[0].counts, whole.levels[name].statistics[0].counts)
        assert torch.equal(kept.levels[name].losses["commitment"], whole.levels[name].losses["commitment"])


@pytest.mark.parametrize("kept", [(3, 3, 3), (1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("learning", ["moving_average", "gradient"])
@either_view
def test_every_parameter_is_in_the_graph_whatever_is_absent(kept: tuple[int, ...], learning: str, sees: str) -> None:
    model = small_model((2, 1, 2), level_dropout=0.5, sees=sees, quantizer={"learning": learning})
    images = pictures(3, 11, 13)
    total, _ = AutoencoderLoss()(model(images, torch.tensor(kept)), images)
    total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_absent_vectors_learn_only_from_samples_that_lack_the_level() -> None:
    model = small_model((2, 2), level_dropout=0.5)
    images = pictures(2, 8, 12)
    gradients: list[Tensor] = []
    for kept in ([2, 2], [1, 2]):
        model.zero_grad()
        model(images, torch.tensor(kept)).reconstruction.square().mean().backward()
        gradients.append(model.levels["bottom"].absent.grad.clone())
    assert not bool(gradients[0].any())
    assert bool(gradients[1].any())
    assert model.levels["top"].absent is None, "the coarsest level is never dropped"


# --- what the image decoder sees ---


@pytest.mark.parametrize("ratios", [(3,), (2, 3), (3, 1, 2)])
def test_a_decoder_that_sees_vectors_is_told_those_of_all_levels_and_nothing_else(ratios: tuple[int, ...]) -> None:
    model = small_model(ratios, sees="vectors").double().eval()
    size = [math.prod(ratios) * n for n in (2, 3)]
    result = model(pictures(2, *size, torch.float64))
    assert model.enlargements is not None
    *coarser, finest = model.level_names
    vectors = {name: level.vectors for name, level in result.levels.items()}
    told = torch.cat([*(model.enlargements[name](vectors[name]) for name in coarser), vectors[finest]], dim=1)
    assert torch.allclose(model.decoder(told), result.reconstruction, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", ["residual", "rezero"])
def test_merges_that_see_vectors_are_told_those_of_all_coarser_levels_and_nothing_else(blocks: str) -> None:
    model = small_model((3, 1, 2, 2), sees="vectors_throughout", blocks=blocks).double().eval()
    images = pictures(2, 24, 36, torch.float64)
    result = model(images)
    assert model.enlargements is not None
    vectors = {name: level.vectors for name, level in result.levels.items()}
    features = model._features(images)
    context = None
    for i, name in enumerate(model.level_names):
        # A level's latents are told what the merge before gave.
        expected = model.levels[name].quantizer.encode(model.levels[name].latents(features[name], context))
        assert torch.equal(result.codes[name], expected)
        told = []
        for j, coarser in enumerate(model.level_names[:i]):
            enlarged = vectors[coarser]
            for stage in list(model.enlargements[coarser])[: i - j]:
                enlarged = stage(enlarged)
            told.append(enlarged)
        merge = model.decoder if name == model.level_names[-1] else model.levels[name].merge
        context = merge(torch.cat([*told, vectors[name]], dim=1))
    assert torch.allclose(context, result.reconstruction, rtol=0, atol=1e-12)
    assert torch.equal(model.decode(result.codes), result.reconstruction)


def test_merges_cannot_see_vectors_that_nothing_enlarges() -> None:
    model = small_model((2, 2))
    with pytest.raises(ConfigurationError, match="give enlargements"):
        Autoencoder(levels=list(model.levels.values()), decoder=model.decoder, merges_see_vectors=True)


def test_both_views_give_the_same_codes_from_the_same_weights() -> None:
    context, vectors = small_model((2, 2)).eval(), small_model((2, 2), sees="vectors").eval()
    vectors.load_state_dict(
        {name: tensor for name, tensor in context.state_dict().items() if name.startswith("levels.")}, strict=False
    )
    images = pictures(2, 11, 13)
    codes, same = context.encode(images), vectors.encode(images)
    assert all(torch.equal(codes[name], same[name]) for name in codes)
    assert not any(name.startswith("enlargements") for name in context.state_dict()), "saved models are as they were"


@pytest.mark.parametrize("names", [(), ("top", "bottom"), ("bottom",)])
def test_enlargements_of_other_levels_are_refused(names: tuple[str, ...]) -> None:
    model = small_model((2, 2))
    with pytest.raises(ConfigurationError, match="every level but the finest, top; received"):
        Autoencoder(
            levels=list(model.levels.values()),
            decoder=model.decoder,
            enlargements={name: nn.Identity() for name in names},
        )


# --- layout and compilers ---


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_lie_channels_last_whatever_the_images_do(layout: torch.memory_format) -> None:
    model = small_model((2, 2))
    seen: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda _, inputs, __: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
    images = pictures(2, 8, 12).to(memory_format=layout)
    before = images.clone()
    model(images)
    assert len(seen) > 10
    assert all(seen)
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_lie_as_weights_do(channels: int) -> None:
    level = {"width": 8, "residual_width": 4, "codebook_size": 7, "code_dimension": 5}
    levels = {"top": {**level, "ratio": 2}, "bottom": {**level, "ratio": 4}}
    decoder = {"width": 8, "residual_width": 4}
    plain = convolutional_autoencoder(channels=channels, levels=levels, decoder=decoder)
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    model = weights_channels_last(plain)
    result, images = model(torch.rand(2, channels, 16, 24)), torch.rand(2, channels, 16, 24)
    AutoencoderLoss()(result, images)[0].backward()
    for name, weight in model.named_parameters():
        assert weight.is_contiguous(memory_format=torch.channels_last if weight.dim() == 4 else torch.contiguous_format)
        assert weight.grad is None or weight.grad.stride() == weight.stride(), name
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@either_view
def test_forward_in_training_compiles_without_a_graph_break(sees: str) -> None:
    model = small_model((2, 2), sees=sees)
    images = pictures(2, 8, 12)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain, same = model(images), compiled(images)
    assert torch.allclose(plain.reconstruction, same.reconstruction, atol=1e-6)
    for name in model.level_names:
        assert torch.equal(plain.codes[name], same.codes[name])
        assert torch.equal(plain.levels[name].statistics[0].counts, same.levels[name].statistics[0].counts)


# --- what codes hang on ---


def changes_codes(model: Autoencoder, name: str, images: Tensor) -> bool:
    """Whether codes become others where a tensor does, by a lot."""
    before, tensor = model.encode(images), model.state_dict()[name]
    kept = tensor.clone()
    with torch.no_grad():
        tensor.copy_(~tensor if tensor.dtype == torch.bool else tensor.flip(0) * -3 + 1)
        after = model.encode(images)
        tensor.copy_(kept)
    return any(not torch.equal(after[level], codes) for level, codes in before.items())


@either_view
def test_encoding_tensors_are_those_that_codes_hang_on(sees: str) -> None:
    model = small_model((2, 2), level_dropout=0.5, sees=sees).double().eval()
    images = pictures(2, 11, 13, torch.float64)
    for quantizer in model.quantizers.values():
        quantizer.codebooks[0].alive[::2] = False
    hashed = model.encoding_tensors()
    deciding = {name for name in model.state_dict() if changes_codes(model, name, images)}
    assert deciding <= hashed.keys()
    assert {name for name in hashed if name not in deciding and name.endswith("weight")} == set()
    for part in ("top.encoder", "top.projection", "top.merge", "bottom.encoder", "bottom.projection"):
        assert any(name.startswith(f"levels.{part}") for name in deciding), part
    for buffer in ("top.quantizer.head_codebooks.0.alive", "bottom.quantizer.head_codebooks.0.vectors"):
        assert f"levels.{buffer}" in deciding
    assert not any(name.startswith(("decoder", "enlargements")) for name in hashed)


def test_enlargements_that_codes_hang_on_are_hashed_and_frozen() -> None:
    model = small_model((2, 1, 2), sees="vectors_throughout").double().eval()
    images, hashed = pictures(2, 11, 13, torch.float64), model.encoding_tensors()
    weights = [name for name in model.state_dict() if name.startswith("enlargements") and name.endswith("weight")]
    deciding = {name for name in weights if changes_codes(model, name, images)}
    assert deciding == {name for name in weights if name in hashed} == {"enlargements.top.0.0.weight"}
    model.freeze(["top"])
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name in weights if name in fixed} == deciding


# --- learning ---


@pytest.mark.parametrize(
    ("ratios", "arguments"), [((2, 2), {}), ((2, 1, 2), {"sees": "vectors_throughout", "blocks": "rezero"})]
)
def test_a_few_steps_learn_at_every_level(ratios: tuple[int, ...], arguments: dict[str, str]) -> None:
    model = small_model(ratios, **arguments).double()
    images = pictures(7, 8, 12, torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    codebooks, loss = CodebookStep(model.quantizers, optimizer), AutoencoderLoss()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    totals = []
    for _ in range(23):
        result = model(images)
        total, _ = loss(result, images)
        optimizer.zero_grad()
        total.backward()
        codebooks.add(result.levels)
        optimizer.step()
        codebooks.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]
    flags = ("alive", "initialized")
    unmoved = [
        name
        for name, tensor in model.state_dict().items()
        if torch.equal(tensor, before[name]) and not name.endswith(flags)
    ]
    assert unmoved == []
