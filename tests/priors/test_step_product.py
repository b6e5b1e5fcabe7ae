"""Products of steps against matrix products in float64, by every build of the compiled kernels and by PyTorch."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import hvq
from hvq.priors.step_product import Change, Norm, RowWindow, StepProduct, gated_silu
from tests.priors.backends import every_backend, native, step_backend


def close(found: Tensor, expected: Tensor) -> bool:
    """Within what float32 sums of these lengths lose."""
    return float((found - expected).abs().max()) <= 2e-6 * max(1.0, float(expected.abs().max()))


@every_backend
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 3, 5, 7, 11, 13, 16, 23, 29, 61]),
    inputs=st.sampled_from([1, 3, 17, 64, 131, 513, 1031]),
    outputs=st.sampled_from([1, 2, 31, 32, 33, 67, 257]),
    change=st.sampled_from(Change),
    extras=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 999),
)
def test_is_the_product_in_float64(
    backend: str,
    rows: int,
    inputs: int,
    outputs: int,
    change: Change,
    extras: tuple[bool, bool, bool],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    has_bias, has_gate, has_add = extras
    weight = torch.randn(outputs, inputs) * inputs**-0.5
    bias = torch.randn(outputs) if has_bias else None
    gate = torch.randn(rows, 3, outputs)[:, 1] if has_gate else None
    add = torch.randn(rows, 2, outputs)[:, 1] if has_add else None
    given_inputs = 3 * torch.randn(rows, 5, inputs * (2 if change == Change.GATED_SILU else 1))[:, 2]
    norm = None
    changed = given_inputs.double()
    if change == Change.ELU:
        changed = functional.elu(changed)
    elif change == Change.GATED_SILU:
        changed = gated_silu(changed)
    elif change == Change.NORMALIZED:
        norm = Norm(torch.randn(rows, 2, inputs)[:, 1], torch.randn(inputs) if has_bias else None)
        size = changed.square().mean(dim=1, keepdim=True).add(norm.epsilon).sqrt()
        changed = changed / size * norm.scale + (0 if norm.shift is None else norm.shift)
    expected = changed @ weight.double().T + (0 if bias is None else bias)
    expected = (0 if add is None else add) + (1 if gate is None else gate) * expected
    with step_backend(backend):
        product = StepProduct(weight, bias)
        found = product(given_inputs, change=change if norm is None else Change.NONE, norm=norm, gate=gate, add=add)
    assert close(found, expected)


@every_backend
@pytest.mark.parametrize(
    ("batch", "width", "channels", "rows", "margin"), [(2, 5, 3, 3, 1), (3, 7, 67, 5, 2), (1, 3, 131, 3, 2)]
)
def test_windows_are_convolutions_of_the_rows_above_and_the_own_row(
    backend: str, batch: int, width: int, channels: int, rows: int, margin: int
) -> None:
    columns, height, outputs = 2 * margin + 1, 7, 11
    features = torch.randn(batch, channels, height, width)
    kernel = torch.randn(outputs, channels, rows - 1, columns) * 0.1
    own_kernel = torch.randn(outputs, channels, 1, margin + 1) * 0.1
    bias = torch.randn(outputs)
    padded = functional.pad(features.double(), (margin, margin, rows - 1, -1))
    above = functional.conv2d(padded, kernel.double())
    own = functional.conv2d(functional.pad(features.double(), (margin, 0)), own_kernel.double(), bias.double())
    with step_backend(backend):
        window = RowWindow.make(kernel, batch, rows, width, margin)
        of_rows = StepProduct(kernel.permute(0, 2, 3, 1).flatten(1))
        of_own = StepProduct(own_kernel[:, :, 0].transpose(1, 2).flatten(1), bias)
        for row in range(height):
            window.advance()
            extra = torch.randn(batch, width, outputs)
            found = of_rows.of_rows(window, rows - 1, columns, extra)
            assert close(found, above[:, :, row].transpose(1, 2) + extra)
            for column in range(width):
                window.write(features[:, :, row, column], column)
                position = of_own.of_position(window, column, margin + 1, found[:, column])
                assert close(position, own[:, :, row, column] + found[:, column])


@native
def test_many_rows_in_parallel_are_what_one_thread_computes() -> None:
    product, inputs = StepProduct(torch.randn(67, 131)), torch.randn(257, 131)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = product(inputs)
        torch.set_num_threads(3)
        assert torch.equal(product(inputs), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_other_precisions_are_taken_by_pytorch(precision: torch.dtype) -> None:
    weight, inputs = torch.randn(5, 7).to(precision), torch.randn(3, 7).to(precision)
    found = StepProduct(weight)(inputs)
    assert found.dtype == precision
    assert torch.equal(found, inputs @ weight.T)


@every_backend
@pytest.mark.parametrize(("rows", "inputs"), [(1, 9001), (0, 7), (2, 9001)])
def test_long_rows_and_none(backend: str, rows: int, inputs: int) -> None:
    weight, given_inputs = torch.randn(3, inputs) * inputs**-0.5, torch.randn(rows, inputs)
    with step_backend(backend):
        found = StepProduct(weight)(given_inputs)
    assert found.shape == (rows, 3)
    assert torch.allclose(found, given_inputs @ weight.T, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", pytest.param("this CPU", marks=native)])
def test_products_hold_no_graph(backend: str) -> None:
    with step_backend(backend), torch.no_grad():
        product = StepProduct.of(torch.nn.Linear(7, 5))
    assert not product(torch.randn(2, 7)).requires_grad


@native
@pytest.mark.parametrize(
    "bad", [torch.randn(2, 7, dtype=torch.bfloat16), torch.randn(2, 7).double(), torch.randn(7, 2).T]
)
def test_what_is_not_float32_channels_last_is_refused_and_not_read_as_if_it_were(bad: Tensor) -> None:
    product = StepProduct(torch.randn(5, 7))
    with pytest.raises(ValueError, match="float32 on the CPU, channels last; received"):
        product(bad)
    with pytest.raises(ValueError, match="float32 on the CPU"):
        StepProduct(torch.randn(7, 3))(torch.randn(2, 3), add=bad)


def test_sources_are_part_of_the_package() -> None:
    root = Path(hvq.__file__).parent
    patterns = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["hvq"]
    sources = [source.relative_to(root) for source in root.rglob("*.c")]
    assert len(sources) >= 2
    assert all(any(source.match(pattern) for pattern in patterns) for source in sources)
