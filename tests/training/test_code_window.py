"""Usage and perplexity between two lines of the log, against a plain count."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from hvq.distributed import Reduction
from hvq.quantizers import GaussianBottleneck, Quantizer, QuantizerResult, VectorQuantizer
from hvq.training.code_window import CodeWindow
from tests.threads import run_in_threads

SIZES = {"top": 7, "bottom": 13}


def _quantizers() -> dict[str, Quantizer]:
    torch.manual_seed(0)
    return {name: VectorQuantizer(codebook_size=size, code_dimension=3) for name, size in SIZES.items()}


def _results(quantizers: dict[str, Quantizer], seed: int) -> dict[str, QuantizerResult]:
    generator = torch.Generator().manual_seed(seed)
    return {name: quantizer(torch.randn(2, 3, 3, 5, generator=generator)) for name, quantizer in quantizers.items()}


def _expected(codes: torch.Tensor, size: int) -> tuple[float, float]:
    counts = Counter(codes.flatten().tolist())
    entropy = -sum(n / codes.numel() * math.log(n / codes.numel()) for n in counts.values())
    return math.exp(entropy), len(counts) / size


def test_numbers_are_those_of_all_codes_since_the_last_line() -> None:
    quantizers = _quantizers()
    window = CodeWindow()
    for line in range(2):
        results = [_results(quantizers, seed) for seed in (10 * line, 10 * line + 1, 10 * line + 2)]
        for result in results:
            window.add(result)
        numbers = window.numbers(Reduction())
        assert sorted(numbers) == ["perplexity.bottom", "perplexity.top", "usage.bottom", "usage.top"]
        for name, size in SIZES.items():
            perplexity, usage = _expected(torch.cat([result[name].codes for result in results]), size)
            assert numbers[f"perplexity.{name}"] == pytest.approx(perplexity)
            assert numbers[f"usage.{name}"] == pytest.approx(usage)


def test_processes_count_together() -> None:
    quantizers = _quantizers()

    def numbers(reduction: Reduction) -> dict[str, float]:
        window = CodeWindow()
        for seed in range(reduction.rank, 6, reduction.size):
            window.add(_results(quantizers, seed))
        return window.numbers(reduction)

    (alone,) = run_in_threads(numbers, 1)
    assert run_in_threads(numbers, 3) == [pytest.approx(alone)] * 3


def test_positions_that_are_padding_do_not_count() -> None:
    quantizer = VectorQuantizer(codebook_size=5, code_dimension=2)
    latents = torch.randn(3, 2, 4, 7)
    mask = torch.zeros(4, 7, dtype=torch.bool)
    mask[:3, :5] = True
    padded, plain = CodeWindow(), CodeWindow()
    padded.add({"top": quantizer(latents, mask)})
    plain.add({"top": quantizer(latents[:, :, :3, :5])})
    assert padded.numbers(Reduction()) == plain.numbers(Reduction())


@pytest.mark.parametrize("heads", [1, 2])
def test_a_frozen_codebook_is_counted_too(heads: int) -> None:
    quantizer = VectorQuantizer(codebook_size=5, code_dimension=2, heads=heads)
    quantizer.freeze()
    result = quantizer(torch.randn(3, 2, 4, 7))
    window = CodeWindow()
    window.add({"top": result})
    assert (
        window.numbers(Reduction())["usage.top"]
        == sum(len(codes.unique()) / 5 for codes in result.codes.view(-1, heads).unbind(dim=1)) / heads
    )


def test_a_level_without_codes_is_left_out() -> None:
    quantizers = _quantizers() | {"top": GaussianBottleneck(code_dimension=3)}
    window = CodeWindow()
    window.add(_results(quantizers, 0))
    assert sorted(window.numbers(Reduction())) == ["perplexity.bottom", "usage.bottom"]
