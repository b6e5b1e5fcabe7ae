from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.quantizers import CodebookStep, VectorQuantizer


class CountingReduction(Reduction):
    """One process that counts its collectives."""

    def __init__(self) -> None:
        self.collectives = 0

    def sum(self, tensor: Tensor) -> Tensor:
        self.collectives += 1
        return tensor


def two_levels(revival_threshold: float = 0.05) -> dict[str, VectorQuantizer]:
    torch.manual_seed(1)
    return {
        "top": VectorQuantizer(codebook_size=7, code_dimension=3, revival_threshold=revival_threshold).double(),
        "bottom": VectorQuantizer(codebook_size=13, code_dimension=5, revival_threshold=revival_threshold).double(),
    }


def batches_of(quantizers: dict[str, VectorQuantizer], rows: int) -> dict[str, Tensor]:
    return {
        name: torch.randn(rows, quantizer.code_dimension, 3, 7, dtype=torch.float64)
        for name, quantizer in quantizers.items()
    }


def add_all(
    codebooks: CodebookStep, quantizers: dict[str, VectorQuantizer], parts: Sequence[dict[str, Tensor]]
) -> None:
    for part in parts:
        codebooks.add({name: quantizers[name](latents) for name, latents in part.items()})


def states(quantizers: dict[str, VectorQuantizer]) -> dict[str, Tensor]:
    return {
        f"{level}.{name}": tensor.clone()
        for level, quantizer in quantizers.items()
        for name, tensor in quantizer.state_dict().items()
    }


def test_four_micro_batches_equal_one_batch() -> None:
    together, apart = two_levels(0.0), two_levels(0.0)
    for _ in range(5):
        batch = batches_of(together, 12)
        codebooks = CodebookStep(together)
        add_all(codebooks, together, [batch])
        codebooks.step()
        codebooks = CodebookStep(apart)
        parts = zip(*(latents.split(3) for latents in batch.values()), strict=True)
        add_all(codebooks, apart, [dict(zip(batch, part, strict=True)) for part in parts])
        codebooks.step()
    for (name, expected), found in zip(states(together).items(), states(apart).values(), strict=True):
        assert torch.allclose(found.double(), expected.double(), rtol=0, atol=1e-12), name


def test_all_levels_travel_in_one_collective() -> None:
    quantizers, reduction = two_levels(), CountingReduction()
    codebooks = CodebookStep(quantizers)
    for step in range(1, 4):
        add_all(codebooks, quantizers, [batches_of(quantizers, 2), batches_of(quantizers, 2)])
        codebooks.step(reduction)
        assert reduction.collectives == step


@pytest.mark.parametrize("forget", ["discard", "step"])
def test_what_was_added_counts_once_or_not_at_all(forget: str) -> None:
    quantizers = two_levels()
    codebooks = CodebookStep(quantizers)
    add_all(codebooks, quantizers, [batches_of(quantizers, 2)])
    getattr(codebooks, forget)()
    before = states(quantizers)
    codebooks.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in states(quantizers).items())


def test_levels_that_do_not_learn_are_left_alone() -> None:
    quantizers = two_levels()
    quantizers["top"].freeze()
    before = states(quantizers)
    codebooks = CodebookStep(quantizers)
    add_all(codebooks, quantizers, [batches_of(quantizers, 2)])
    codebooks.step()
    moved = {name.split(".")[0] for name, tensor in states(quantizers).items() if not torch.equal(tensor, before[name])}
    assert moved == {"bottom"}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_moments_of_revived_codes_are_forgotten_and_those_of_others_kept(kind: type[torch.optim.Optimizer]) -> None:
    quantizer = VectorQuantizer(codebook_size=11, code_dimension=3, learning="gradient")
    extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(quantizer.parameters(), lr=0.01, **extra)
    codebooks = CodebookStep({"top": quantizer}, optimizer)
    for _ in range(3):
        quantizer.codebooks[0].vectors.grad = torch.ones_like(quantizer.codebooks[0].vectors)
        optimizer.step()
    quantizer.codebooks[0].steps.fill_(100_000)
    quantizer.codebooks[0].moving_counts.fill_(100.0)
    quantizer.codebooks[0].moving_counts[[2, 5]] = 0.0
    codebooks.add({"top": quantizer(torch.randn(2, 3, 7))})
    codebooks.step()
    moments = [value for value in optimizer.state[quantizer.codebooks[0].vectors].values() if value.shape == (11, 3)]
    assert moments
    for moment in moments:
        assert (moment != 0).all(dim=1).logical_not().nonzero().flatten().tolist() == [2, 5]


def test_tells_how_many_codes_of_each_level_were_revived() -> None:
    quantizers = two_levels()
    codebooks = CodebookStep(quantizers)
    for quantizer in quantizers.values():
        quantizer.codebooks[0].steps.fill_(100_000)
        quantizer.codebooks[0].moving_counts.fill_(1e6)
    quantizers["bottom"].codebooks[0].moving_counts[[2, 5, 11]] = 0.0
    add_all(codebooks, quantizers, [batches_of(quantizers, 2)])
    assert {name: int(number) for name, number in codebooks.step().items()} == {"top": 0, "bottom": 3}
    assert codebooks.step() == {}


def test_works_before_the_optimizer_has_a_state() -> None:
    quantizer = VectorQuantizer(codebook_size=11, code_dimension=3, learning="gradient")
    optimizer = torch.optim.Adam(nn.ModuleList([quantizer]).parameters())
    codebooks = CodebookStep({"top": quantizer}, optimizer)
    codebooks.add({"top": quantizer(torch.randn(2, 3, 7))})
    codebooks.step()
    assert len(optimizer.state) == 0, "no entry is left behind that the optimizer would take for its own"


def test_statistics_do_not_pile_up_over_steps() -> None:
    """What a hundred steps leave behind is what one leaves: nothing but the codebook."""
    quantizers = two_levels()
    codebooks = CodebookStep(quantizers)
    sizes = []
    for _ in range(100):
        add_all(codebooks, quantizers, [batches_of(quantizers, 1)])
        codebooks.step()
        sizes.append(sum(tensor.numel() for tensor in states(quantizers).values()))
        assert not any(value for value in vars(codebooks).values() if value not in (codebooks.quantizers, None))
    assert len(set(sizes)) == 1
    assert not any(tensor.requires_grad for tensor in states(quantizers).values())
