from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hvq.errors import ConfigurationError
from hvq.quantizers import LookupFreeQuantizer
from hvq.quantizers.lookup_free import mean_probabilities


def quantizer_of(bits: int, groups: int = 1, **arguments: Any) -> LookupFreeQuantizer:
    return LookupFreeQuantizer(codebook_size=2**bits, code_dimension=groups * bits, groups=groups, **arguments).double()


def all_codes(bits: int) -> Tensor:
    """`[2^b, b]`, signs in the order of codes, the first number the lowest bit."""
    return torch.tensor([[1.0 if code >> i & 1 else -1.0 for i in range(bits)] for code in range(2**bits)]).double()


def test_codes_are_the_signs_read_as_bits() -> None:
    quantizer, signs = quantizer_of(5), all_codes(5)
    assert torch.equal(quantizer.lookup(torch.arange(32)), signs)
    assert torch.equal(quantizer.assign(signs * torch.rand(32, 5).double()), torch.arange(32))


def test_groups_are_quantizers_of_their_slices() -> None:
    whole, part = quantizer_of(3, groups=2), quantizer_of(3)
    latents = torch.randn(101, 6).double()
    codes = whole.assign(latents)
    assert torch.equal(codes[:, 0], part.assign(latents[:, :3]))
    assert torch.equal(codes[:, 1], part.assign(latents[:, 3:]))


def test_on_the_sphere_codes_have_length_one_and_latents_only_a_direction() -> None:
    quantizer = quantizer_of(5, spherical=True)
    assert torch.allclose(quantizer.lookup(torch.arange(32)).norm(dim=1), torch.ones(32).double())
    latents = torch.randn(101, 5).double()
    one, other = quantizer.quantize(latents, None), quantizer.quantize(100 * latents, None)
    assert torch.equal(one.codes, other.codes)
    assert torch.allclose(one.losses["entropy"], other.losses["entropy"])


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_entropy_term_is_that_of_all_codes_written_out(spherical: bool, masked: bool) -> None:
    bits, temperature, diversity = 5, 0.7, 1.3
    quantizer = quantizer_of(bits, spherical=spherical, inverse_temperature=temperature, diversity=diversity)
    latents = 0.4 * torch.randn(37, bits, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(37) % 3 > 0 if masked else None
    inner = functional.normalize(latents, dim=1) * bits**0.5 if spherical else latents
    distances = (inner.unsqueeze(1) - all_codes(bits)).square().sum(dim=2)
    shares = (-temperature * distances).softmax(dim=1)
    shares = shares if weights is None else shares[weights]
    mean = shares.mean(dim=0)
    expected = -(shares * shares.log()).sum(dim=1).mean() + diversity * (mean * mean.log()).sum()
    found = quantizer.quantize(latents, weights).losses["entropy"]
    assert torch.allclose(found, expected, rtol=1e-10)
    wanted, given = (torch.autograd.grad(value, latents, retain_graph=True)[0] for value in (expected, found))
    assert torch.allclose(given, wanted, atol=1e-12)


def test_the_entropy_term_of_groups_is_the_sum_of_theirs() -> None:
    whole, part = quantizer_of(3, groups=2), quantizer_of(3)
    latents = torch.randn(31, 6).double()
    terms = [part.quantize(latents[:, i : i + 3], None).losses["entropy"] for i in (0, 3)]
    assert torch.allclose(whole.quantize(latents, None).losses["entropy"], terms[0] + terms[1])


def test_the_mean_over_codes_in_chunks_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(103, 5, dtype=torch.float64, requires_grad=True)
    expected = mean_probabilities(logits, None)
    (wanted,) = torch.autograd.grad(expected.square().sum(), logits)
    monkeypatch.setattr("hvq.quantizers.lookup_free._CHUNK_ELEMENTS", 7 * 8)
    found = mean_probabilities(logits, None)
    (given,) = torch.autograd.grad(found.square().sum(), logits)
    assert torch.allclose(found, expected)
    assert torch.allclose(given, wanted)
    assert float(found.sum()) == pytest.approx(1.0)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def test_the_entropy_of_many_codes_needs_no_tensor_of_latents_times_codes() -> None:
    quantizer = LookupFreeQuantizer(codebook_size=2**16, code_dimension=16)
    latents = torch.randn(1, 16, 1009, requires_grad=True)
    with Largest() as largest:
        sum(quantizer(latents).losses.values()).backward()
    assert 2**16 <= largest.elements <= 1009 * 2**8 + 2**16


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"codebook_size": 17}, "take 16"),
        ({"codebook_size": 1}, "take 2"),
        ({"codebook_size": 2**30}, "or several groups"),
        ({"groups": 0}, "codes per position"),
        ({"inverse_temperature": 0.0}, "inverse_temperature"),
        ({"diversity": -1.0}, "diversity"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        LookupFreeQuantizer(**{"codebook_size": 16, "code_dimension": 4, **arguments})


def test_the_entropy_term_brings_codes_into_use() -> None:
    """Latents that all lie in one corner spread over the codes, and each is sure of its own."""
    torch.manual_seed(0)
    quantizer = quantizer_of(4)
    latents = torch.nn.Parameter(0.5 + 0.1 * torch.randn(503, 4).double())
    assert quantizer.assign(latents).unique().tolist() == [15]
    before = float(quantizer.quantize(latents, None).losses["entropy"].detach())
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sum(quantizer.quantize(latents, None).losses.values()).backward()
        optimizer.step()
    assert len(quantizer.assign(latents).unique()) > 8
    after = float(quantizer.quantize(latents, None).losses["entropy"].detach())
    assert -math.log(16) <= after < -0.8 < before


def test_the_table_of_signs_is_in_order() -> None:
    assert all_codes(2).tolist() == [[b, a] for a, b in itertools.product([-1.0, 1.0], repeat=2)]
