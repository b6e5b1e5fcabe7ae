"""One optimizer step: micro-batches add up to a batch, and a step that is skipped leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hvq.autoencoders import Autoencoder, AutoencoderLoss, convolutional_autoencoder
from hvq.config import OptimizationConfig
from hvq.errors import HVQError
from hvq.training.optimization import Losses, Optimization, parameter_groups
from hvq.training.schedule import learning_rate
from tests.runs import differing

CONFIG = OptimizationConfig(steps=50, warmup_steps=3, average_decay=0.9)


def _autoencoder(learning: str = "moving_average", revival_threshold: float = 0.05) -> Autoencoder:
    torch.manual_seed(0)
    quantizer = {"learning": learning, "revival_threshold": revival_threshold}
    level = {"width": 8, "residual_blocks": 1, "residual_width": 4, "code_dimension": 3, "quantizer": quantizer}
    levels = {"top": {**level, "ratio": 2, "codebook_size": 7}, "bottom": {**level, "ratio": 2, "codebook_size": 11}}
    return convolutional_autoencoder(channels=1, levels=levels, decoder={"width": 8, "residual_width": 4})


def _prepared(model: Autoencoder) -> tuple[Optimization, Callable[[Tensor], Losses]]:
    optimization = Optimization(model.train(), CONFIG, Accelerator(), seed=5, quantizers=model.quantizers)
    loss = AutoencoderLoss()

    def losses(images: Tensor) -> Losses:
        result = optimization.wrapped(images)
        optimization.codebooks.add(result.levels)
        return loss(result, images)

    return optimization, losses


def _batches(count: int) -> list[Tensor]:
    return list(torch.rand(count, 12, 1, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def _state(optimization: Optimization) -> dict[str, Tensor]:
    """Copies of everything that a step may change."""
    state = {f"model/{name}": tensor for name, tensor in optimization.model.state_dict().items()}
    state |= {f"average/{name}": tensor for name, tensor in optimization.average.tensors.items()}
    for name, parameter in optimization.model.named_parameters():
        moments: dict[str, Any] = optimization.optimizer.state.get(parameter, {})
        state |= {f"{moment}/{name}": torch.as_tensor(value) for moment, value in moments.items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@pytest.mark.parametrize("learning", ["moving_average", "gradient"])
def test_four_micro_batches_equal_one_batch(learning: str) -> None:
    (batch,) = _batches(1)
    states = []
    for parts in (1, 4):
        # Which latents stand ready for revival depends on the cut, so revival is off.
        optimization, losses = _prepared(_autoencoder(learning, revival_threshold=0.0))
        report = optimization.step(batch.chunk(parts), losses)
        assert not report.skipped
        states.append((_state(optimization), report))
    (whole, of_whole), (parted, of_parts) = states
    assert whole.keys() == parted.keys()
    for name, tensor in whole.items():
        # Sums of latents grow with the batch, and float32 rounds them in proportion.
        scale = max(1.0, float(tensor.double().abs().max()))
        assert float((tensor.double() - parted[name].double()).abs().max()) < 1e-5 * scale, name
    assert of_parts.terms == pytest.approx(of_whole.terms, abs=1e-5)
    assert of_parts.gradient_norm == pytest.approx(of_whole.gradient_norm, rel=1e-4)


@pytest.mark.parametrize("learning", ["moving_average", "gradient"])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(learning: str, place: str) -> None:
    optimization, losses = _prepared(_autoencoder(learning))
    first, second, third = _batches(3)
    optimization.step([first], losses)
    before = _state(optimization)

    def spoiled(images: Tensor) -> Losses:
        total, terms = losses(images)
        if place == "loss":
            return total * torch.nan, terms
        # A finite value whose gradient is not: the square root at zero.
        parameter = next(optimization.model.parameters())
        return total + (parameter * 0).sum().sqrt(), terms

    report = optimization.step([second], spoiled)
    assert report.skipped
    assert optimization.step_number == 2
    assert differing(before, _state(optimization)) == []
    optimization.step([third], losses)

    other, other_losses = _prepared(_autoencoder(learning))
    other.step([first], other_losses)
    other.step_number = 2
    other.step([third], other_losses)
    assert differing(_state(other), _state(optimization)) == []


def test_a_run_that_only_skips_gives_up() -> None:
    layer = nn.Linear(2, 1)
    optimization = Optimization(layer, CONFIG, Accelerator(), seed=0)

    def losses(inputs: Tensor) -> Losses:
        return optimization.wrapped(inputs).sum() * torch.nan, {}

    for _ in range(49):
        assert optimization.step([torch.ones(3, 2)], losses).skipped
    with pytest.raises(HVQError, match=r"not finite 50 steps in a row, up to step 50; lower learning_rate"):
        optimization.step([torch.ones(3, 2)], losses)


def test_the_learning_rate_is_that_of_the_step() -> None:
    optimization, losses = _prepared(_autoencoder())
    for step, batch in enumerate(_batches(5)):
        optimization.step([batch], losses)
        rates = {group["lr"] for group in optimization.optimizer.param_groups}
        assert rates == {learning_rate(CONFIG, step)}


def test_drop_out_is_a_function_of_the_step() -> None:
    def masks(start: int, steps: int) -> list[list[float]]:
        layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(31, 1))
        optimization = Optimization(layer, CONFIG, Accelerator(), seed=0)
        optimization.step_number = start
        seen: list[list[float]] = []

        def losses(inputs: Tensor) -> Losses:
            seen.append(layer[0](inputs).flatten().tolist())
            return optimization.wrapped(inputs).sum(), {}

        for _ in range(steps):
            optimization.step([torch.ones(1, 31)], losses)
        return seen

    straight = masks(0, 4)
    assert masks(2, 2) == straight[2:]
    assert straight[0] != straight[1]


def test_terms_are_means_over_micro_batches() -> None:
    layer = nn.Linear(2, 1)
    optimization = Optimization(layer, CONFIG, Accelerator(), seed=0)
    values: Sequence[Tensor] = [torch.tensor([[float(i), 1.0]]) for i in (1, 2, 6)]

    def losses(inputs: Tensor) -> Losses:
        return optimization.wrapped(inputs).sum(), {"first": inputs[0, 0]}

    assert optimization.step(values, losses).terms["first"] == 3.0


def test_only_weights_of_two_dimensions_decay() -> None:
    model = _autoencoder("gradient")
    decayed, plain = (
        {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
        for group in parameter_groups(model, 0.3)
    )
    names = dict(model.named_parameters())
    assert {id(parameter) for parameter in names.values()} == decayed | plain
    assert not decayed & plain
    for name, parameter in names.items():
        assert (id(parameter) in decayed) == (name.endswith("weight") and parameter.dim() > 1), name
    assert [group["weight_decay"] for group in parameter_groups(model, 0.3)] == [0.3, 0.0]


@pytest.mark.usefixtures("fresh_accelerate")
def test_autocast_is_for_training_alone() -> None:
    layer = nn.Linear(5, 3)
    optimization = Optimization(layer, CONFIG, Accelerator(mixed_precision="bf16"), seed=0)
    inputs = torch.randn(7, 5)
    seen: list[torch.dtype] = []

    def losses(batch: Tensor) -> Losses:
        output = optimization.wrapped(batch)
        seen.append(output.dtype)
        return output.float().square().mean(), {}

    optimization.step([inputs], losses)
    assert seen == [torch.bfloat16]
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.weight, layer.bias))
