"""A step of training and one of evaluation as one graph each, whatever the quantizer: `fullgraph` refuses a break."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hvq.autoencoders import Autoencoder, AutoencoderLoss, AutoencoderResult
from tests.autoencoders.small import pictures, small_model
from tests.export.small import one_level
from tests.quantizers.kinds import KINDS, RANDOM
from tests.versions import needs_newer_torch

# Each way of making codes and of passing gradients among them.
CHOSEN = [
    "vector",
    "vector gradient",
    "vector rotation",
    "vector cosine",
    "vector diveq",
    "vector heads",
    "residual dropout",
    "residual shared",
    "finite_scalar",
    "lookup_free groups",
    "sim",
    "gumbel",
    "gaussian",
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def losses_and_result(model: Autoencoder, images: Tensor) -> tuple[Tensor, dict[str, Tensor], AutoencoderResult]:
    result = model(images)
    return *AutoencoderLoss()(result, images), result


@pytest.mark.parametrize("kind", CHOSEN)
@pytest.mark.parametrize("training", [False, True])
def test_forward_loss_and_gradients_are_one_graph(kind: str, training: bool) -> None:
    model, images = one_level(KINDS[kind]()).train(training), pictures(2, 6, 10)
    compiled = torch.compile(losses_and_result, backend="eager", fullgraph=True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = []
    for called in (losses_and_result, compiled):
        total, _, result = called(model, images)
        found.append((total, result, torch.autograd.grad(total, weights, allow_unused=True)))
    (total, result, gradients), (same, other, others) = found
    assert bool(same.isfinite())
    assert [gradient is None for gradient in gradients] == [gradient is None for gradient in others]
    assert len(result.levels["top"].statistics) == len(other.levels["top"].statistics)
    # What is drawn at random in training is drawn anew.
    if not training or kind not in RANDOM:
        assert torch.allclose(total, same, atol=1e-6)
        assert torch.equal(result.codes["top"], other.codes["top"])
        for gradient, its in zip(gradients, others, strict=True):
            assert gradient is None or torch.allclose(gradient, its, atol=1e-5)


@needs_newer_torch
@pytest.mark.parametrize("sees", ["context", "vectors"])
def test_level_dropout_and_prefixes_are_in_the_graph(sees: str) -> None:
    model, images = small_model((2, 2, 1), level_dropout=0.5, sees=sees), pictures(3, 11, 13)
    kept = torch.tensor([1, 3, 2])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain, same = model(images, kept, prefixes=True), compiled(images, kept, prefixes=True)
    assert torch.allclose(plain.reconstruction, same.reconstruction, atol=1e-6)
    assert plain.prefixes.keys() == same.prefixes.keys()
    assert all(torch.allclose(image, same.prefixes[name], atol=1e-6) for name, image in plain.prefixes.items())
