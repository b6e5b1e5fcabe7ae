"""Whole models on two processes, against one process on the joined batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hvq.autoencoders import Autoencoder, AutoencoderLoss, initialize_codebooks
from hvq.distributed import current_reduction
from hvq.quantizers import CodebookStep
from tests.autoencoders.small import pictures, small_model
from tests.processes import run_in_processes

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


def seeded_model(learning: str, revival_threshold: float) -> Autoencoder:
    torch.manual_seed(7)
    return small_model(
        (2, 2), level_dropout=0.5, quantizer={"learning": learning, "revival_threshold": revival_threshold}
    )


def train(
    model: Autoencoder, steps: list[tuple[Tensor, Tensor]], optimizer_name: str, micro_batches: int
) -> dict[str, Tensor]:
    """Steps on this process's share of each (images, kept levels)."""
    reduction = current_reduction()
    wrapped: nn.Module = DistributedDataParallel(model) if reduction.size > 1 else model
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    codebooks, loss = CodebookStep(model.quantizers, optimizer), AutoencoderLoss()
    for images, kept in steps:
        optimizer.zero_grad()
        mine = [tensor.chunk(reduction.size)[reduction.rank].chunk(micro_batches) for tensor in (images, kept)]
        for part, levels in zip(*mine, strict=True):
            result = wrapped(part, levels)
            total, _ = loss(result, part)
            (total / micro_batches).backward()
            codebooks.add(result.levels)
        optimizer.step()
        codebooks.step(reduction)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def one_step(images: Tensor, kept: Tensor, learning: str, optimizer_name: str, micro_batches: int) -> dict[str, Tensor]:
    model = seeded_model(learning, 0.0).to(images.dtype)
    return train(model, [(images, kept)], optimizer_name, micro_batches)


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        scale = max(1.0, float(tensor.double().abs().max()))
        assert torch.allclose(found[name].double(), tensor.double(), rtol=0, atol=1e-5 * scale), name


CASES = [("moving_average", "adamw"), ("gradient", "adamw"), ("gradient", "sgd")]


def one_step_of_each_case(images: Tensor, kept: Tensor, micro_batches: int) -> list[dict[str, Tensor]]:
    return [one_step(images, kept, learning, optimizer_name, micro_batches) for learning, optimizer_name in CASES]


@pytest.mark.processes
def test_one_step_on_two_processes_is_one_step_on_the_joined_batch() -> None:
    images, kept = pictures(8, 11, 13), torch.tensor([1, 2] * 4)
    expected = one_step_of_each_case(images, kept, 1)
    for found in run_in_processes(one_step_of_each_case, 2, images, kept, 1):
        for state, expected_state in zip(found, expected, strict=True):
            check_close(state, expected_state)


def test_one_step_on_four_micro_batches_is_one_step_on_the_batch() -> None:
    images, kept = pictures(8, 11, 13), torch.tensor([1, 2] * 4)
    whole, parts = one_step_of_each_case(images, kept, 1), one_step_of_each_case(images, kept, 4)
    for state, expected_state in zip(parts, whole, strict=True):
        check_close(state, expected_state)


def with_kmeans_and_revival(learning: str) -> dict[str, Tensor]:
    """Processes with batches of their own, and of other sizes before the first step."""
    model = seeded_model(learning, 0.5)
    reduction = current_reduction()
    generator = torch.Generator().manual_seed(reduction.rank)
    first = [torch.rand(2 + 3 * reduction.rank, 2, 11, 13, generator=generator) for _ in range(29)]
    initialize_codebooks(model, first, reduction)
    shared = torch.Generator().manual_seed(5)
    steps = [
        (torch.rand(6, 2, 11, 13, generator=shared), torch.randint(1, 3, (6,), generator=shared)) for _ in range(11)
    ]
    return train(model, steps, "adamw", 1)


def both_ways_to_learn() -> dict[str, Tensor]:
    return {
        f"{learning} {name}": tensor
        for learning in ("moving_average", "gradient")
        for name, tensor in with_kmeans_and_revival(learning).items()
    }


@pytest.mark.processes
def test_models_stay_bitwise_equal_with_kmeans_and_revival() -> None:
    first, second = run_in_processes(both_ways_to_learn, 2)
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name
