"""How gradients pass a quantizer, whose choice of a code has none.

Each function takes latents `[N, D]` and the vectors `[N, D]` chosen for them, and returns the vectors with a gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Estimator = Literal["straight_through", "rotation", "diveq"]


class _StraightThrough(torch.autograd.Function):
    """A function of its own, so that neither value nor gradient costs a pass over the tensors."""

    @staticmethod
    def forward(latents: Tensor, vectors: Tensor) -> Tensor:
        return vectors.view_as(vectors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(latents: Tensor, vectors: Tensor) -> Tensor:
    """The value of `vectors`, to the last bit, with the gradient of `latents`: z + sg[z_q - z] (arXiv 1711.00937).

    >>> latents = torch.zeros(1, 2, requires_grad=True)
    >>> straight_through(latents, torch.tensor([[3.0, 4.0]])).prod().backward()
    >>> latents.grad
    tensor([[4., 3.]])
    """
    return _StraightThrough.apply(latents, vectors.detach())


class _StraightThroughWithErrors(torch.autograd.Function):
    """Straight-through vectors and the squared errors of the latents in one: their gradients meet in a single pass."""

    @staticmethod
    def forward(latents: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        errors = latents - vectors
        # A norm is summed in one pass, where a product of the errors with themselves would take memory of its own.
        return vectors.view_as(vectors), torch.linalg.vector_norm(errors, dim=1).square(), errors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(output[2])
        # Otherwise zeros as large as the latents would be made for what has no gradient.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        of_vectors, of_squared_errors, _ = gradients
        (errors,) = ctx.saved_tensors
        if of_squared_errors is None:
            return of_vectors, None
        if of_vectors is None:
            return errors * (2 * of_squared_errors.unsqueeze(1)), None
        return torch.addcmul(of_vectors, errors, of_squared_errors.unsqueeze(1), value=2), None


def straight_through_with_errors(latents: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """`straight_through`, and ‖z - sg[z_q]‖² `[N]` with its gradient, which is what the commitment loss is made of.

    >>> latents = torch.zeros(1, 2, requires_grad=True)
    >>> vectors, squared_errors = straight_through_with_errors(latents, torch.tensor([[3.0, 4.0]]))
    >>> (vectors.sum() + squared_errors.sum()).backward()
    >>> squared_errors.detach(), latents.grad
    (tensor([25.]), tensor([[-5., -7.]]))
    """
    vectors, squared_errors, _ = _StraightThroughWithErrors.apply(latents, vectors.detach())
    return vectors, squared_errors


def rotation(latents: Tensor, vectors: Tensor) -> Tensor:
    """The value of `vectors`; the gradient is turned and scaled as the latent is on its way to its vector.

    The rotation trick (Fifty et al. 2024, arXiv 2410.06424): z_q = s R z with s = ‖z_q‖ / ‖z‖ and R the rotation in the
    plane of both, held constant. So the angle between the gradient and the vector is kept.
    """
    with torch.no_grad():
        start = functional.normalize(latents, dim=1)
        end = functional.normalize(vectors, dim=1)
        between = functional.normalize(start + end, dim=1)
        scale = vectors.norm(dim=1, keepdim=True) / latents.norm(dim=1, keepdim=True).clamp(min=1e-12)
    # R z = z - 2 m (m·z) + 2 end (start·z), with m halfway between the two directions.
    halfway = (latents * between).sum(dim=1, keepdim=True) * between
    straight = (latents * start).sum(dim=1, keepdim=True) * end
    turned = scale * (latents - 2 * halfway + 2 * straight)
    return vectors.detach() + (turned - turned.detach())


def diveq(latents: Tensor, vectors: Tensor, variance: float) -> Tensor:
    """z + ‖z_q - z‖ sg[v / ‖v‖], v normal around z_q - z: gradients reach latents and vectors alike.

    DiVeQ (Vali, Bäckström, Solin 2025, arXiv 2509.26469): the error keeps its length, and its direction is a little
    noisy. With a variance of 0 the value is that of `vectors` but for rounding.

    Args:
        latents: `[N, D]`.
        vectors: `[N, D]`, through which the codebook learns.
        variance: of the noise in each dimension of the direction.
    """
    error = vectors - latents
    with torch.no_grad():
        direction = functional.normalize(error + variance**0.5 * torch.randn_like(error), dim=1)
    return latents + _length(error) * direction


def _length(vectors: Tensor) -> Tensor:
    """`[N, 1]`, with the gradient 0 at 0, where that of the norm is not defined."""
    squared = vectors.square().sum(dim=1, keepdim=True)
    return torch.where(squared > 0, squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt(), 0.0)
