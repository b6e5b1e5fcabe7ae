from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError
from hvq.quantizers import (
    CodebookStep,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
    SimQuantizer,
    VectorQuantizer,
)


def vector(codebook_size: int = 11, code_dimension: int = 3, **arguments: Any) -> VectorQuantizer:
    return VectorQuantizer(codebook_size=codebook_size, code_dimension=code_dimension, **arguments)


def row(number: int = 3, **arguments: Any) -> ResidualQuantizer:
    torch.manual_seed(1)
    quantizer = ResidualQuantizer(quantizers=[vector(**arguments) for _ in range(number)]).double()
    quantizer.initialize(torch.randn(401, 3).double(), 1, Reduction())
    return quantizer


def test_each_quantizer_takes_what_the_ones_before_left_over() -> None:
    quantizer = row()
    latents = torch.randn(37, 3).double()
    residual, vectors = latents, torch.zeros_like(latents)
    result = quantizer.quantize(latents, None)
    for i, codebook in enumerate(quantizer.codebooks):
        codes = torch.cdist(residual, codebook.vectors).argmin(dim=1)
        assert torch.equal(result.codes[:, i], codes)
        assert torch.allclose(result.statistics[i].sums.sum(dim=0), residual.sum(dim=0))
        vectors, residual = vectors + codebook.vectors[codes], residual - codebook.vectors[codes]
        assert torch.allclose(quantizer.lookup(result.codes[:, : i + 1]), vectors), "the first few alone"
    assert torch.allclose(result.vectors, vectors)


def test_every_further_quantizer_lowers_the_error() -> None:
    latents = torch.randn(1009, 3).double()
    quantizer = row(4)
    codes = quantizer.assign(latents)
    errors = [float((quantizer.lookup(codes[:, :n]) - latents).square().mean()) for n in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_losses_are_means_over_the_row_and_their_gradients_those_of_the_closed_form() -> None:
    """Every quantizer draws the latents to its vector; none of them gets no gradient."""
    quantizer = row(learning="gradient")
    latents = torch.randn(37, 3, dtype=torch.float64, requires_grad=True)
    result = quantizer.quantize(latents, None)
    residual, expected, terms = latents.detach(), torch.zeros(37, 3).double(), []
    for i, codebook in enumerate(quantizer.codebooks):
        difference = residual - codebook.vectors.detach()[result.codes[:, i]]
        terms.append(difference.square().mean())
        expected += 2 * difference / (37 * 3) / 3
        residual = difference
    assert torch.allclose(result.losses["commitment"], torch.stack(terms).mean())
    (moved,) = torch.autograd.grad(result.losses["commitment"], latents, retain_graph=True)
    assert torch.allclose(moved, expected)
    result.losses["codebook"].backward()
    assert all(bool((codebook.vectors.grad != 0).any()) for codebook in quantizer.codebooks)
    assert latents.grad is None


@pytest.mark.parametrize("number", [2, 3, 5])
def test_the_gradient_at_the_sum_reaches_the_latents_once(number: int) -> None:
    latents = torch.randn(37, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(37, 3).double()
    row(number).quantize(latents, None).vectors.backward(upstream)
    assert torch.allclose(latents.grad, upstream)


def test_dropped_positions_count_neither_in_losses_nor_in_statistics() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(quantizers=[vector() for _ in range(3)], dropout=0.9).double()
    latents = torch.randn(503, 3).double()
    result = quantizer.quantize(latents, None)
    counted = [int(statistics.counts.sum()) for statistics in result.statistics]
    assert counted[0] == 503
    assert 503 * 0.9 / 2 - 60 < counted[0] - counted[1] < 503 * 0.9 / 2 + 60
    assert 503 * 0.1 - 30 < counted[2] < 503 * 0.1 + 30
    assert result.codes.shape == (503, 3)
    partial = torch.stack([quantizer.lookup(result.codes[:, :n]) for n in (1, 2, 3)])
    distances = (partial - result.vectors).abs().amax(dim=2).amin(dim=0)
    assert float(distances.max()) < 1e-12, "each position is the sum of its first few vectors"
    kept = ResidualQuantizer(quantizers=list(quantizer.quantizers)).double()  # type: ignore[arg-type]
    assert torch.equal(quantizer.eval().quantize(latents, None).vectors, kept.eval().quantize(latents, None).vectors)


def test_a_shared_codebook_learns_from_all_places_in_the_row() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(quantizers=[vector()], codes_per_position=3).double()
    quantizer.initialize(torch.randn(401, 3).double(), 1, Reduction())
    latents = torch.randn(1, 3, 101).double()
    result = quantizer(latents)
    (statistics,) = result.statistics
    assert int(statistics.counts.sum()) == 3 * 101
    assert torch.equal(result.counts.sum(dim=0), statistics.counts)
    assert statistics.candidates.shape == (16, 3)
    before = quantizer.codebooks[0].vectors.clone()
    codebooks = CodebookStep({"top": quantizer})
    codebooks.add({"top": result})
    codebooks.step()
    assert not torch.equal(quantizer.codebooks[0].vectors, before)
    assert len(quantizer.state_dict()) == len(vector().state_dict()), "it is saved once"


@pytest.mark.parametrize("shared", [False, True])
def test_kmeans_starts_every_codebook_on_the_residuals_it_will_see(shared: bool) -> None:
    torch.manual_seed(0)
    latents = torch.randn(2003, 3).double()
    make = [vector(61)] if shared else [vector(61) for _ in range(2)]
    quantizer = ResidualQuantizer(quantizers=make, codes_per_position=2).double()
    quantizer.initialize(latents, 1, Reduction())
    assert quantizer.initialized
    codes = quantizer.assign(latents)
    error = float((quantizer.lookup(codes) - latents).square().mean())
    assert error < (0.06 if shared else 0.02)
    assert len(codes[:, 1].unique()) > 20


def inner(kind: str) -> list[Quantizer]:
    sizes = {"codebook_size": 16, "code_dimension": 4}
    made: dict[str, Quantizer] = {
        "cosine": VectorQuantizer(metric="cosine", **sizes),
        "rotation": VectorQuantizer(estimator="rotation", **sizes),
        "projection": VectorQuantizer(projection_dimension=2, **sizes),
        "heads": VectorQuantizer(heads=2, **sizes),
        "gumbel": GumbelQuantizer(**sizes),
        "spherical": LookupFreeQuantizer(spherical=True, **sizes),
        "lookup_free projection": LookupFreeQuantizer(codebook_size=16, code_dimension=5),
        "sim rotation": SimQuantizer(estimator="rotation", **sizes),
        "residual": ResidualQuantizer(quantizers=[vector(), vector()]),
    }
    return [made[kind]] * 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cosine", "vectors of length one cannot become smaller"),
        ("rotation", "set estimator to straight_through"),
        ("projection", "give the level fewer dimensions"),
        ("heads", "several codes per position"),
        ("gumbel", "mixtures while training"),
        ("spherical", "set spherical to false"),
        ("lookup_free projection", "set code_dimension to 4"),
        ("sim rotation", "set estimator to straight_through"),
        ("residual", "several codes per position"),
    ],
)
def test_kinds_that_cannot_take_residuals_are_refused_with_the_reason(kind: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        ResidualQuantizer(quantizers=inner(kind))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"quantizers": []}, "received 0 for 0"),
        ({"quantizers": [vector()]}, "received 1 for 1"),
        ({"quantizers": [vector(), vector()], "codes_per_position": 3}, "received 2 for 3"),
        ({"quantizers": [vector(11), vector(13)]}, "same K and D"),
        ({"quantizers": [vector(), vector()], "dropout": 1.0}, "dropout"),
        (
            {"quantizers": [FiniteScalarQuantizer(codebook_size=512, code_dimension=3)], "codes_per_position": 2},
            "nothing to share",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        ResidualQuantizer(**arguments)


def gains(quantizer: ResidualQuantizer, latents: Tensor) -> list[float]:
    codes = quantizer.assign(latents)
    return [
        float((quantizer.lookup(codes[:, : n + 1]) - latents).square().mean())
        for n in range(quantizer.codes_per_position)
    ]


def test_kinds_of_fixed_scale_refine_what_the_first_left_over() -> None:
    signs = ResidualQuantizer(quantizers=[LookupFreeQuantizer(codebook_size=8, code_dimension=3) for _ in range(5)])
    errors = gains(signs, torch.rand(997, 3) * 4 - 2)
    assert all(later < 0.3 * earlier for earlier, later in pairwise(errors))
