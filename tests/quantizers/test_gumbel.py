from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvq.errors import ConfigurationError
from hvq.quantizers import CodebookStep, GumbelQuantizer
from tests.quantizers.test_lookup_free import Largest


def quantizer_of(codebook_size: int = 13, **arguments: Any) -> GumbelQuantizer:
    torch.manual_seed(1)
    return GumbelQuantizer(codebook_size=codebook_size, code_dimension=3, **arguments).double()


def test_the_divergence_is_that_of_the_posterior_to_the_uniform_prior() -> None:
    quantizer = quantizer_of()
    latents = torch.randn(37, 3).double()
    shares = quantizer.logits(latents).softmax(dim=1).detach()
    by_hand = sum(sum(float(q) * math.log(float(q) * 13) for q in row) for row in shares) / 37
    assert float(quantizer.quantize(latents, None).losses["kl"].detach()) == pytest.approx(by_hand)
    one_hot = quantizer_of()
    nn.init.zeros_(one_hot.logits.weight)
    nn.init.zeros_(one_hot.logits.bias)
    one_hot.logits.bias.data[4] = 100.0
    assert float(one_hot.quantize(latents, None).losses["kl"].detach()) == pytest.approx(math.log(13))


def test_evaluation_takes_the_most_probable_code_the_lowest_of_equals() -> None:
    quantizer = quantizer_of().eval()
    latents = torch.randn(37, 3).double()
    result = quantizer.quantize(latents, None)
    assert torch.equal(result.codes, quantizer.logits(latents).argmax(dim=1))
    assert torch.equal(result.vectors, quantizer.vectors[result.codes])
    nn.init.zeros_(quantizer.logits.weight)
    nn.init.zeros_(quantizer.logits.bias)
    assert quantizer.assign(latents).unique().tolist() == [0]


def test_draws_have_the_probabilities_of_the_posterior() -> None:
    quantizer = quantizer_of(5)
    latents = torch.randn(1, 3).double().expand(40_000, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        counts = torch.bincount(quantizer.quantize(latents, None).codes, minlength=5)
    shares = quantizer.logits(latents[:1]).softmax(dim=1)[0]
    assert torch.allclose(counts.double() / 40_000, shares, atol=0.01)


@pytest.mark.parametrize("hard", [False, True])
def test_gradients_are_those_of_the_mixture_for_the_same_noise(hard: bool) -> None:
    quantizer = quantizer_of(hard=hard)
    latents = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(11, 3).double()
    torch.manual_seed(5)
    result = quantizer.quantize(latents, None)
    inputs = [latents, quantizer.vectors, quantizer.logits.weight]
    found = torch.autograd.grad(result.vectors, inputs, upstream)
    torch.manual_seed(5)
    noise = -(-torch.rand(11, 13, dtype=torch.float64).log()).log()
    shares = ((quantizer.logits(latents) + noise) / 1.0).softmax(dim=1)
    mixture = shares @ quantizer.vectors
    for one, other in zip(found, torch.autograd.grad(mixture, inputs, upstream), strict=True):
        assert torch.allclose(one, other)
    assert torch.equal(result.codes, shares.argmax(dim=1))
    assert torch.allclose(result.vectors, quantizer.vectors[result.codes] if hard else mixture)


def test_the_temperature_follows_a_cosine_of_the_steps_that_count() -> None:
    quantizer = quantizer_of(start_temperature=2.0, end_temperature=0.5, anneal_steps=4)
    codebooks = CodebookStep({"top": quantizer})
    found = []
    for _ in range(7):
        found.append(float(quantizer.temperature()))
        quantizer(torch.randn(1, 3, 5).double())
        codebooks.step()
    middle = [0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(5)]
    assert found == pytest.approx([*middle, 0.5, 0.5])
    quantizer.freeze()
    before = quantizer.steps.clone()
    codebooks.step()
    assert torch.equal(quantizer.steps, before)


def run(quantizer: GumbelQuantizer, latents: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    result = quantizer.quantize(latents, torch.arange(len(latents)) % 3 > 0)
    loss = result.vectors.square().sum() + result.losses["kl"]
    return [result.vectors, result.codes, *torch.autograd.grad(loss, [latents, *quantizer.parameters()])]


def test_chunks_repeat_their_noise_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk of all rows, and one row in each, with the same draws in the same order."""
    latents = torch.randn(17, 3, dtype=torch.float64, requires_grad=True)
    whole = run(quantizer_of(), latents)
    monkeypatch.setattr("hvq.quantizers.gumbel._CHUNK_ELEMENTS", 13)
    for found, expected in zip(run(quantizer_of(), latents), whole, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9)


def test_many_codes_need_no_tensor_of_latents_times_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvq.quantizers.gumbel._CHUNK_ELEMENTS", 2**18)
    quantizer = GumbelQuantizer(codebook_size=4_099, code_dimension=3)
    with Largest() as largest:
        result = quantizer(torch.randn(1, 3, 1_009, requires_grad=True))
        (result.vectors.sum() + result.losses["kl"]).backward()
    assert 2**17 < largest.elements <= 2**18


@pytest.mark.parametrize(
    "arguments",
    [{"end_temperature": 2.0}, {"end_temperature": 0.0}, {"start_temperature": -1.0}, {"anneal_steps": 0}],
)
def test_schedules_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be positive and not rise"):
        quantizer_of(**arguments)
