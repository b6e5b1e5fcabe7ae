from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hvq.quantizers.estimators import diveq, rotation, straight_through


def pair(number: int = 13, dimension: int = 5) -> tuple[Tensor, Tensor]:
    latents = torch.randn(number, dimension, dtype=torch.float64, requires_grad=True)
    return latents, torch.randn(number, dimension, dtype=torch.float64, requires_grad=True)


def rotation_matrix(start: Tensor, end: Tensor) -> Tensor:
    """The rotation in the plane of two unit vectors that takes one to the other, by Rodrigues' formula."""
    cosine = start @ end
    turn = torch.outer(end, start) - torch.outer(start, end)
    return torch.eye(len(start), dtype=start.dtype) + turn + turn @ turn / (1 + cosine)


def test_straight_through_has_the_value_of_the_vectors_and_the_gradient_of_the_latents() -> None:
    latents, vectors = pair()
    upstream = torch.randn(13, 5).double()
    result = straight_through(latents, vectors)
    result.backward(upstream)
    assert torch.equal(result, vectors)
    assert torch.equal(latents.grad, upstream)
    assert vectors.grad is None


def test_straight_through_keeps_the_value_where_a_sum_would_round() -> None:
    latents, vectors = torch.full((1, 1), 1e8, requires_grad=True), torch.full((1, 1), 0.1)
    assert torch.equal(straight_through(latents, vectors), vectors)
    assert not torch.equal(latents + (vectors - latents).detach(), vectors)


@given(dimension=st.integers(2, 11), seed=st.integers(0, 999))
def test_rotation_turns_the_gradient_by_the_transposed_rotation(dimension: int, seed: int) -> None:
    torch.manual_seed(seed)
    latents, vectors = pair(7, dimension)
    upstream = torch.randn(7, dimension).double()
    result = rotation(latents, vectors)
    result.backward(upstream)
    assert torch.equal(result, vectors)
    assert vectors.grad is None
    for i in range(7):
        start, end = latents[i].detach(), vectors[i].detach()
        matrix = rotation_matrix(functional.normalize(start, dim=0), functional.normalize(end, dim=0))
        scaled = end.norm() / start.norm() * matrix
        assert torch.allclose(scaled @ start, end, atol=1e-9), "the oracle takes the latent to its vector"
        assert torch.allclose(latents.grad[i], scaled.T @ upstream[i], atol=1e-8)


def test_rotation_is_finite_at_the_origin_and_for_opposite_vectors() -> None:
    latents = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    vectors = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])
    result = rotation(latents, vectors)
    result.sum().backward()
    assert torch.equal(result, vectors)
    assert bool(latents.grad.isfinite().all())


def test_diveq_keeps_the_length_of_the_error_and_blurs_its_direction() -> None:
    latents, vectors = pair(1009, 7)
    result = diveq(latents, vectors, 1e-4)
    errors, blurred = vectors - latents, result - latents
    assert torch.allclose(blurred.norm(dim=1), errors.norm(dim=1))
    sines = torch.sin(torch.acos(functional.cosine_similarity(errors, blurred).clamp(max=1)))
    expected = (6 * 1e-4) ** 0.5 / errors.norm(dim=1)
    assert 0.9 < float((sines / expected).detach().square().mean().sqrt()) < 1.1
    assert torch.allclose(diveq(latents, vectors, 0.0), vectors)


def test_diveq_has_the_gradients_of_its_closed_form() -> None:
    """d z_q / d z = I - u e^T and d z_q / d e = u e^T, with e the unit error and u the noisy direction."""
    latents, vectors = pair(3, 5)
    upstream = torch.randn(3, 5).double()
    torch.manual_seed(3)
    diveq(latents, vectors, 0.1).backward(upstream)
    torch.manual_seed(3)
    error = (vectors - latents).detach()
    direction = functional.normalize(error + 0.1**0.5 * torch.randn_like(error), dim=1)
    along = (upstream * direction).sum(dim=1, keepdim=True) * functional.normalize(error, dim=1)
    assert torch.allclose(latents.grad, upstream - along)
    assert torch.allclose(vectors.grad, along)


def test_diveq_is_finite_where_latents_are_met_exactly() -> None:
    latents = torch.zeros(2, 3, requires_grad=True)
    vectors = torch.zeros(2, 3, requires_grad=True)
    diveq(latents, vectors, 1e-3).sum().backward()
    assert bool(latents.grad.isfinite().all())
    assert bool(vectors.grad.isfinite().all())
