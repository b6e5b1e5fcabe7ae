"""Compilers see each prior as one graph: `torch.compile` with `fullgraph`, which refuses a break."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.priors.backends import step_backend
from tests.priors.small import KINDS, codes_of, condition_of, small_prior
from tests.versions import needs_newer_torch

pytestmark = needs_newer_torch

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_kind
def test_forward_compiles_without_a_graph_break(kind: str) -> None:
    prior = small_prior("middle", kind)
    codes, condition = codes_of("middle", 2), condition_of("middle", 2)
    compiled = torch.compile(prior, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(codes, condition), prior(codes, condition), atol=1e-4)


@pytest.mark.parametrize("kind", ["transformer-grouped", "pixelsnail-plain", "pixelcnn"])
def test_training_compiles_without_a_graph_break(kind: str) -> None:
    prior = small_prior("middle", kind, dropout=0.0).train()
    codes, condition = codes_of("middle", 2), condition_of("middle", 2)
    compiled = torch.compile(prior, backend="eager", fullgraph=True)
    weights, gradients = list(prior.parameters()), []
    for called in (prior, compiled):
        loss = torch.nn.functional.cross_entropy(called(codes, condition).flatten(0, -2), codes.flatten())
        gradients.append(torch.autograd.grad(loss, weights, allow_unused=True))
    for plain, same in zip(*gradients, strict=True):
        assert (plain is None) == (same is None)
        assert plain is None or torch.allclose(plain, same, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "codes_per_position"),
    [*((kind, 1) for kind in ("transformer", "transformer-window", "pixelsnail", "pixelcnn")), ("transformer", 2)],
)
def test_cached_steps_compile_without_a_graph_break_into_few_graphs(kind: str, codes_per_position: int) -> None:
    """In plain PyTorch; the compiled kernels of steps are C, into which no compiler looks."""
    prior = small_prior("bottom", kind, codes_per_position=codes_per_position)
    codes, condition = codes_of("bottom", 2, (4, 6, 2) if codes_per_position > 1 else None), condition_of("bottom", 2)
    with step_backend("torch"):
        # A ninth graph would be refused, and there are 24 positions.
        compiled = torch.compile(prior.step, backend="eager", fullgraph=True)
        cache, other = prior.make_cache(condition, 2, (4, 6)), prior.make_cache(condition, 2, (4, 6))
        for previous in [None, *codes.flatten(1)[:, :-1].unbind(dim=1)]:
            expected, cache = prior.step(previous, cache)
            found, other = compiled(previous, other)
            assert torch.allclose(found, expected, atol=1e-4)
    assert other.position == other.length
