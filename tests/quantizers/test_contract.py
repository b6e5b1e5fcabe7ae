"""What the contract promises, for every kind of quantizer."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.quantizers import CodebookStep, Quantizer, QuantizerResult, VectorQuantizer
from tests.quantizers.kinds import CONTINUOUS, DIMENSION, EXACT, KINDS, NOT_MEANS, RANDOM, UNCHANGED

every = pytest.mark.parametrize("kind", KINDS)
exact = pytest.mark.parametrize("kind", EXACT)
coded = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CONTINUOUS])


def make(kind: str) -> Quantizer:
    """An instance whose codebooks, if it has any, have seen some latents."""
    torch.manual_seed(3)
    quantizer = KINDS[kind]()
    quantizer.initialize(torch.randn(701, DIMENSION), 1, Reduction())
    return quantizer


def some_latents(
    seed: int = 0, batch: int = 2, grid: tuple[int, ...] = (3, 7), kind: torch.dtype | None = None
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, DIMENSION, *grid, generator=generator).to(kind or torch.float32)


def total_of(result: QuantizerResult) -> Tensor:
    return result.vectors.square().mean() + sum(result.losses.values(), torch.zeros(()))


def state(quantizer: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in quantizer.state_dict().items()}


def changed(quantizer: Quantizer, before: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in quantizer.state_dict().items() if not torch.equal(tensor, before[name])]


def train(quantizer: Quantizer, steps: int = 3, micro_batches: int = 1) -> None:
    """A few steps of the optimizer and of the codebooks."""
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
    codebooks = CodebookStep({"top": quantizer}, optimizer)
    for step in range(steps):
        for part in some_latents(step, batch=4).chunk(micro_batches):
            result = quantizer(part)
            codebooks.add({"top": result})
            total = total_of(result) / micro_batches
            if total.requires_grad:
                total.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        codebooks.step()


# --- shapes, codes, vectors ---


@coded
@pytest.mark.parametrize("grid", [(), (11,), (3, 7), (2, 3, 5)])
def test_shapes_and_types_are_as_promised_in_training_and_evaluation(kind: str, grid: tuple[int, ...]) -> None:
    quantizer = make(kind)
    several = quantizer.codes_per_position
    for mode in (True, False):
        result = quantizer.train(mode)(some_latents(grid=grid))
        assert result.vectors.shape == (2, DIMENSION, *grid)
        assert result.codes.shape == (2, *grid, *([several] if several > 1 else []))
        assert result.codes.dtype == result.counts.dtype == torch.int64
        assert 0 <= int(result.codes.min()) <= int(result.codes.max()) < quantizer.codebook_size
        assert result.counts.shape == (several, quantizer.codebook_size)
        assert all(loss.shape == () and loss.dtype == torch.float32 for loss in result.losses.values())
        assert len(result.statistics) == (len(quantizer.codebooks) if mode else 0)


@every
def test_losses_have_the_same_names_in_training_and_evaluation(kind: str) -> None:
    quantizer = make(kind)
    assert quantizer(some_latents()).losses.keys() == quantizer.eval()(some_latents()).losses.keys()


@every
def test_decode_gives_the_vectors_of_the_forward_and_encode_its_codes(kind: str) -> None:
    quantizer = make(kind).eval()
    latents = some_latents()
    with torch.no_grad():
        result = quantizer(latents)
        assert torch.equal(quantizer.encode(latents), result.codes)
        assert torch.equal(quantizer.decode(result.codes), result.vectors)
    assert torch.equal(quantizer(latents).vectors, result.vectors), "with gradients or without"


@every
def test_memory_layout_changes_nothing(kind: str) -> None:
    quantizer = make(kind).eval()
    latents = some_latents(batch=3)
    expected = quantizer(latents)
    found = quantizer(latents.contiguous(memory_format=torch.channels_last))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.vectors, expected.vectors)


@coded
def test_counts_are_those_of_the_codes(kind: str) -> None:
    quantizer = make(kind).eval()
    result = quantizer(some_latents(batch=5))
    columns = result.codes.view(-1, quantizer.codes_per_position).unbind(dim=1)
    expected = [torch.bincount(column, minlength=quantizer.codebook_size) for column in columns]
    assert torch.equal(result.counts, torch.stack(expected))


@coded
def test_what_is_out_of_range_is_refused_with_the_range(kind: str) -> None:
    quantizer = make(kind)
    several = [quantizer.codes_per_position] * (quantizer.codes_per_position > 1)
    with pytest.raises(DataError, match=f"0 .. {quantizer.codebook_size - 1}"):
        quantizer.decode(torch.full([2, 3, *several], quantizer.codebook_size))
    with pytest.raises(DataError, match="code_dimension on axis 1"):
        quantizer(torch.randn(2, DIMENSION + 1, 3))
    if several:
        with pytest.raises(DataError, match="codes must be"):
            quantizer.decode(torch.zeros(2, 3, several[0] + 1, dtype=torch.int64))


# --- what changes, and what does not ---


@every
def test_a_forward_writes_nothing(kind: str) -> None:
    quantizer = make(kind)
    before = state(quantizer)
    total_of(quantizer(some_latents().requires_grad_())).backward()
    assert changed(quantizer, before) == []


@every
def test_ten_steps_change_what_learns_and_ten_evaluations_nothing(kind: str) -> None:
    quantizer = make(kind)
    before = state(quantizer)
    train(quantizer, steps=10)
    learns = list(quantizer.parameters()) or quantizer.codebooks
    assert bool(changed(quantizer, before)) == bool(learns)
    quantizer.eval()
    before, generator = state(quantizer), torch.get_rng_state()
    results = [quantizer(some_latents()) for _ in range(10)]
    train(quantizer.eval(), steps=0)
    assert changed(quantizer, before) == []
    assert torch.equal(torch.get_rng_state(), generator), "no random draw"
    assert all(torch.equal(result.vectors, results[0].vectors) for result in results)


@every
def test_evaluation_before_training_starts_no_kmeans(kind: str) -> None:
    quantizer = KINDS[kind]().eval()
    before = state(quantizer)
    quantizer(some_latents())
    assert changed(quantizer, before) == []
    assert quantizer.initialized == (not quantizer.starts_from_latents)


@every
def test_a_frozen_quantizer_learns_nothing_and_still_moves_the_encoder(kind: str) -> None:
    quantizer = make(kind)
    quantizer.freeze()
    before = state(quantizer)
    latents = some_latents().requires_grad_()
    result = quantizer(latents)
    codebooks = CodebookStep({"top": quantizer})
    codebooks.add({"top": result})
    codebooks.step()
    total_of(result).backward()
    assert result.statistics == []
    assert changed(quantizer, before) == []
    assert all(parameter.grad is None for parameter in quantizer.parameters())
    assert bool((latents.grad != 0).any())


@every
def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    quantizer = make(kind)
    train(quantizer)
    save_file(quantizer.state_dict(), tmp_path / "quantizer.safetensors")
    loaded = KINDS[kind]()
    loaded.load_state_dict(load_file(tmp_path / "quantizer.safetensors"))
    assert loaded.initialized
    assert torch.equal(loaded.eval()(some_latents()).vectors, quantizer.eval()(some_latents()).vectors)
    for one in (quantizer, loaded):
        torch.manual_seed(0)
        train(one.train())
    assert changed(loaded, state(quantizer)) == [], "they go on alike"


@exact
def test_four_micro_batches_learn_what_one_batch_learns(kind: str) -> None:
    if kind in NOT_MEANS:
        pytest.skip("its entropy term looks at the mean over the batch")
    whole, parts = make(kind).double(), make(kind).double()
    train_double(whole, 1)
    train_double(parts, 4)
    for (name, expected), found in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        if "moving" in name or "candidates" in name:
            assert torch.allclose(found, expected, rtol=1e-9), name
        else:
            assert torch.allclose(found.double(), expected.double(), rtol=0, atol=1e-9), name


def train_double(quantizer: Quantizer, micro_batches: int) -> None:
    """Without revival, whose candidates are other latents of the same batch."""
    for codebook in quantizer.codebooks:
        codebook.revival_threshold = 0.0
    train(quantizer, micro_batches=micro_batches)


@every
def test_learning_writes_into_buffers_and_replaces_none(kind: str) -> None:
    """A buffer that is assigned anew is no longer the one that a wrapper for parallel training knows."""
    quantizer = make(kind)
    places = {name: (id(buffer), buffer.data_ptr()) for name, buffer in quantizer.named_buffers()}
    train(quantizer)
    assert {name: (id(buffer), buffer.data_ptr()) for name, buffer in quantizer.named_buffers()} == places


# --- precision ---


@every
@pytest.mark.parametrize("kind_of_float", [torch.float16, torch.bfloat16])
def test_autocast_and_casts_of_the_module_change_no_code(kind: str, kind_of_float: torch.dtype) -> None:
    quantizer = make(kind)
    latents = 3 * some_latents()
    expected = quantizer.eval()(latents)
    with torch.autocast("cpu", kind_of_float):
        result = quantizer(latents)
        assert torch.equal(quantizer.encode(latents), expected.codes)
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.vectors, expected.vectors)
    assert all(loss.dtype == torch.float32 and bool(loss.isfinite()) for loss in result.losses.values())
    before = state(quantizer)
    cast = nn.Sequential(quantizer).to(kind_of_float)[0]
    assert changed(cast, before) == []
    low = cast(latents.to(kind_of_float))
    assert low.vectors.dtype == kind_of_float
    assert all(loss.dtype == torch.float32 for loss in low.losses.values())


@every
def test_losses_stay_finite_over_200_steps_under_autocast(kind: str) -> None:
    quantizer = make(kind)
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
    codebooks = CodebookStep({"top": quantizer}, optimizer)
    for step in range(200):
        with torch.autocast("cpu", torch.bfloat16):
            result = quantizer(30 * some_latents(step))
        codebooks.add({"top": result})
        total = total_of(result)
        assert bool(total.isfinite())
        if optimizer and total.requires_grad:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        codebooks.step()


# --- masks and gradients ---


@exact
def test_masked_positions_count_as_if_they_were_not_there(kind: str) -> None:
    quantizer = make(kind).double()
    inner = some_latents(grid=(3, 5), kind=torch.float64)
    padded = 1e3 * torch.randn(2, DIMENSION, 4, 7, dtype=torch.float64)
    padded[:, :, :3, :5] = inner
    mask = torch.zeros(4, 7, dtype=torch.bool)
    mask[:3, :5] = True
    expected, result = quantizer(inner), quantizer(padded, mask)
    assert torch.equal(result.codes[:, :3, :5], expected.codes)
    assert torch.equal(result.counts, expected.counts)
    for name, loss in expected.losses.items():
        assert torch.allclose(result.losses[name], loss, rtol=1e-9), name
    for found, wanted in zip(result.statistics, expected.statistics, strict=True):
        assert torch.equal(found.counts, wanted.counts)
        assert torch.allclose(found.sums, wanted.sums, atol=1e-9)


@pytest.mark.parametrize("kind", sorted(UNCHANGED))
def test_the_gradient_at_the_vectors_reaches_the_latents_unchanged(kind: str) -> None:
    quantizer = make(kind).double()
    latents = some_latents(kind=torch.float64).requires_grad_()
    upstream = some_latents(1, kind=torch.float64)
    quantizer(latents).vectors.backward(upstream)
    assert torch.allclose(latents.grad, upstream, rtol=1e-12)


@every
def test_every_parameter_is_reached_by_the_gradient(kind: str) -> None:
    quantizer = make(kind)
    torch.manual_seed(0)
    total_of(quantizer(some_latents(batch=31).requires_grad_())).backward()
    assert all(parameter.grad is not None for parameter in quantizer.parameters())
    assert all(bool((parameter.grad != 0).any()) for parameter in quantizer.parameters())


# --- memory ---


@every
def test_nothing_grows_and_no_graph_is_held_over_100_steps(kind: str) -> None:
    quantizer = make(kind)
    codebooks = CodebookStep({"top": quantizer})
    alive: list[int] = []
    for step in range(100):
        codebooks.add({"top": quantizer(some_latents(step, grid=(3,)))})
        codebooks.step()
        if step in (20, 99):
            gc.collect()
            alive.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    assert alive[1] <= alive[0]
    assert not any(tensor.requires_grad for tensor in quantizer.buffers())


@pytest.mark.parametrize(
    "kind", ["vector", "residual", "finite_scalar", "lookup_free groups", "gumbel", "sim", "gaussian"]
)
def test_export_and_compilation_give_the_same_codes(kind: str) -> None:
    class Encode(nn.Module):
        def __init__(self, quantizer: Quantizer) -> None:
            super().__init__()
            self.quantizer = quantizer

        def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
            codes = self.quantizer.encode(latents)
            return codes, self.quantizer.decode(codes)

    model, latents = Encode(make(kind).eval()), some_latents()
    codes, vectors = model(latents)
    exported = torch.export.export(model, (latents,)).module()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for other in (exported, compiled):
        assert torch.equal(other(latents)[0], codes)
        assert torch.allclose(other(latents)[1], vectors)


def test_every_kind_is_in_one_of_the_groups() -> None:
    assert KINDS.keys() >= RANDOM | UNCHANGED | NOT_MEANS
    assert len(KINDS) > 20


@pytest.mark.parametrize(("size", "dimension"), [(0, 3), (5, 0), (-1, 3)])
def test_sizes_that_are_not_positive_are_refused(size: int, dimension: int) -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        VectorQuantizer(codebook_size=size, code_dimension=dimension)


# --- latents that pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind]().starts_from_latents])
def test_continuous_latents_pass_with_their_gradient_and_teach_nothing(kind: str) -> None:
    quantizer = make(kind).train()
    quantizer.continuous = True
    latents = some_latents(11).requires_grad_()
    result = quantizer(latents)
    assert (result.losses, result.statistics) == ({}, [])
    assert result.counts.shape == (quantizer.codes_per_position, 0)
    assert result.codes.shape == (2, 3, 7, *quantizer.code_shape)
    assert not result.codes.any()
    result.vectors.square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    # Every parameter has a gradient, since otherwise processes would wait for it.
    assert all(parameter.grad is not None for parameter in quantizer.parameters())
    if not kind.endswith("projection") and "cosine" not in kind:
        assert torch.equal(result.vectors, latents)
    before = quantizer.mean_vector()
    quantizer.continuous = False
    assert quantizer(latents).losses or quantizer(latents).codes.any()
    assert torch.equal(quantizer.mean_vector(), before)


def test_continuous_latents_of_the_cosine_metric_lie_on_the_sphere() -> None:
    quantizer = make("vector cosine")
    quantizer.continuous = True
    vectors = quantizer(some_latents(5)).vectors
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2, 3, 7))
