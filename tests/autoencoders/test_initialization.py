from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hvq.autoencoders import Autoencoder, initialize_codebooks
from hvq.autoencoders.initialization import let_latents_pass, needs_codebooks
from hvq.errors import DataError
from tests.autoencoders.small import codebook, pictures, small_model


class Batches:
    """Batches without end, that count how many were taken."""

    def __init__(self, batch: int = 3, height: int = 8, width: int = 12) -> None:
        self.taken: list[Tensor] = []
        self.shape = (batch, height, width)

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.taken.append(pictures(*self.shape))
            yield self.taken[-1]


def distortion(model: Autoencoder, images: Tensor, name: str) -> float:
    """Mean squared distance of a level's latents to their vectors over the variance of the latents."""
    latents = model.latents(images, name).detach()
    result = model.quantizers[name](latents.T.unsqueeze(0))
    return float(result.losses["commitment"] / latents.var(dim=0).mean())


def test_takes_as_many_batches_as_give_32_latents_per_code_at_every_level() -> None:
    """The top has 2 x 3 codes per image: 32 x 11 latents are 352, 18 of each batch; so 20 batches."""
    model, batches = small_model((2, 2)), Batches()
    initialize_codebooks(model, batches)
    assert len(batches.taken) == 20
    assert not needs_codebooks(model)
    assert float(model.quantizers["top"].codebooks[0].moving_counts.sum()) == pytest.approx(18.0)
    # The bottom has 13 codes and 4 x 6 positions: 416 latents, 72 of each batch, so the first 6 batches are enough.
    assert float(model.quantizers["bottom"].codebooks[0].moving_counts.sum()) == pytest.approx(72.0)


def test_averages_begin_as_those_of_a_step_of_several_batches() -> None:
    one, three = small_model((2,)), small_model((2,))
    three.load_state_dict(one.state_dict())
    images = [pictures(3, 8, 12) for _ in range(2)]
    initialize_codebooks(one, images)
    initialize_codebooks(three, images, batches_per_step=3)
    assert torch.allclose(
        three.quantizers["top"].codebooks[0].moving_counts, 3 * one.quantizers["top"].codebooks[0].moving_counts
    )
    assert torch.equal(codebook(three.quantizers["top"]), codebook(one.quantizers["top"]))


def test_or_all_there_are() -> None:
    model = small_model((2, 2))
    initialize_codebooks(model, [pictures(1, 4, 4)])
    top = model.quantizers["top"]
    assert int(top.codebooks[0].alive.sum()) == 1, "one latent, one code"
    assert not needs_codebooks(model)
    assert bool(model(pictures(1, 4, 4)).reconstruction.isfinite().all())


def test_no_batches_are_an_error() -> None:
    with pytest.raises(DataError, match="at least one batch"):
        initialize_codebooks(small_model((2,)), [])


def test_codebooks_fit_their_latents_at_every_level() -> None:
    model = small_model((2, 1, 2))
    images = pictures(29, 8, 12)
    before = [distortion(model, images, name) for name in model.level_names]
    initialize_codebooks(model, [images])
    after = [distortion(model, images, name) for name in model.level_names]
    assert all(new < 0.5 < old for new, old in zip(after, before, strict=True))


def test_finer_levels_are_fitted_given_the_new_coarser_codebooks() -> None:
    model = small_model((2, 2), code_dimension=3)
    images = pictures(29, 8, 12)
    with torch.no_grad():
        codebook(model.quantizers["top"]).fill_(1_000.0)
    initialize_codebooks(model, [images])
    latents = model.latents(images, "bottom").detach()
    assert float(latents.abs().max()) < 100, "the top's old codebook would have pushed the bottom's latents far off"
    assert float(codebook(model.quantizers["bottom"]).abs().max()) < 100


def test_is_the_same_every_time_and_leaves_weights_and_mode_alone() -> None:
    images = [pictures(29, 8, 12)]
    one, other = small_model((2, 2)), small_model((2, 2))
    other.load_state_dict(one.state_dict())
    weights = {name: parameter.clone() for name, parameter in one.named_parameters()}
    initialize_codebooks(one.train(), images)
    initialize_codebooks(other.eval(), images)
    assert one.training
    assert not other.training
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in one.named_parameters())


def test_the_flag_travels_with_the_weights_so_that_it_never_runs_again() -> None:
    model, loaded = small_model((2, 2)), small_model((2, 2))
    assert needs_codebooks(model)
    initialize_codebooks(model, [pictures(3, 8, 12)])
    loaded.load_state_dict(model.state_dict())
    assert not needs_codebooks(loaded)


def test_latents_pass_until_codebooks_are_set() -> None:
    model, images = small_model((2, 2)), [pictures(5, 8, 12) for _ in range(3)]
    let_latents_pass(model)
    assert [quantizer.continuous for quantizer in model.quantizers.values()] == [True, True]
    passed = model(images[0])
    assert all(not level.losses for level in passed.levels.values())
    initialize_codebooks(model, images)
    assert [quantizer.continuous for quantizer in model.quantizers.values()] == [False, False]
    assert all("commitment" in level.losses for level in model(images[0]).levels.values())
    # Nothing is left to be set, and nothing passes.
    let_latents_pass(model)
    assert not any(quantizer.continuous for quantizer in model.quantizers.values())


def test_a_finer_level_is_set_from_what_the_codes_of_coarser_ones_tell_it() -> None:
    one, other = small_model((2, 2)), small_model((2, 2))
    other.load_state_dict(one.state_dict())
    images = [pictures(5, 8, 12) for _ in range(3)]
    let_latents_pass(other)
    for model in (one, other):
        initialize_codebooks(model, images)
    assert torch.equal(codebook(one.quantizers["bottom"]), codebook(other.quantizers["bottom"]))
