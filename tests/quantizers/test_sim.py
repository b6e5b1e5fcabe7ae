from __future__ import annotations

import pytest
import torch

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.quantizers import SimQuantizer


def test_terms_and_their_gradients_are_those_of_the_closed_form() -> None:
    quantizer = SimQuantizer(codebook_size=7, code_dimension=3).double()
    latents = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    table = (quantizer.fixed_vectors @ quantizer.map.weight.T).detach()
    codes = torch.cdist(latents.detach(), table).argmin(dim=1)
    result = quantizer.quantize(latents, None)
    assert torch.equal(result.codes, codes)
    assert torch.allclose(result.vectors, table[codes])
    difference = latents.detach() - table[codes]
    for loss in result.losses.values():
        assert torch.allclose(loss, difference.square().mean())
    weight = quantizer.map.weight
    moved = torch.autograd.grad(result.losses["commitment"], [latents, weight], retain_graph=True, allow_unused=True)
    assert torch.allclose(moved[0], 2 * difference / 33)
    assert moved[1] is None, "commitment moves only the encoder"
    moved = torch.autograd.grad(result.losses["codebook"], [latents, weight], allow_unused=True)
    assert moved[0] is None, "the codebook loss moves only the map"
    assert torch.allclose(moved[1], -2 * difference.T @ quantizer.fixed_vectors[codes] / 33)


def test_a_step_moves_codes_that_no_latent_chose_too() -> None:
    torch.manual_seed(0)
    quantizer = SimQuantizer(codebook_size=101, code_dimension=5)
    before = quantizer.lookup(torch.arange(101)).detach()
    fixed = quantizer.fixed_vectors.clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    result = quantizer(torch.randn(1, 5, 3))
    result.losses["codebook"].backward()
    optimizer.step()
    moved = (quantizer.lookup(torch.arange(101)) - before).norm(dim=1) > 0
    assert bool(moved.all())
    assert torch.equal(quantizer.fixed_vectors, fixed)


@pytest.mark.parametrize("dimension", [2, 32, 257])
def test_the_codebook_starts_at_the_same_scale_whatever_its_dimension(dimension: int) -> None:
    vectors = SimQuantizer(codebook_size=499, code_dimension=dimension).lookup(torch.arange(499))
    assert 0.8 < float(vectors.detach().square().sum(dim=1).mean()) < 1.2


def test_kmeans_sets_the_fixed_codebook_and_is_kept_with_the_weights() -> None:
    torch.manual_seed(0)
    heaps = 10 * torch.randn(7, 3)
    latents = heaps.repeat_interleave(31, dim=0) + 1e-3 * torch.randn(217, 3)
    quantizer = SimQuantizer(codebook_size=11, code_dimension=3)
    quantizer.initialize(latents, 1, Reduction())
    assert float(quantizer(latents.T.unsqueeze(0)).losses["commitment"].detach()) < 1e-5
    assert bool(quantizer.fixed_vectors.isfinite().all())
    loaded = SimQuantizer(codebook_size=11, code_dimension=3)
    assert not loaded.initialized
    loaded.load_state_dict(quantizer.state_dict())
    assert loaded.initialized
    few = SimQuantizer(codebook_size=11, code_dimension=3)
    few.initialize(heaps[:2].repeat(5, 1), 1, Reduction())
    assert len(few.lookup(torch.arange(11)).unique(dim=0)) == 11, "codes beyond the latents stay apart"


def test_the_mean_vector_is_the_mean_of_the_codebook() -> None:
    quantizer = SimQuantizer(codebook_size=13, code_dimension=3)
    assert torch.allclose(quantizer.mean_vector(), quantizer.lookup(torch.arange(13)).mean(dim=0), atol=1e-6)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="straight_through or rotation; received diveq"):
        SimQuantizer(codebook_size=5, code_dimension=3, estimator="diveq")  # type: ignore[arg-type]


def test_learns_to_tell_clusters_apart() -> None:
    torch.manual_seed(0)
    centers = 3 * torch.randn(23, 4)
    quantizer = SimQuantizer(codebook_size=61, code_dimension=4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    errors = []
    for _ in range(150):
        latents = (centers[torch.randint(23, (257,))] + 0.05 * torch.randn(257, 4)).T.unsqueeze(0)
        loss = quantizer(latents).losses["codebook"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.4 * errors[0]
