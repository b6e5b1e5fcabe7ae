from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.quantizers import CodebookStep, QuantizerResult, VectorQuantizer
from hvq.quantizers.codebook import Learning

LEARNING: tuple[Learning, ...] = ("moving_average", "gradient")
learns = pytest.mark.parametrize("learning", LEARNING)


def quantizer_of(codebook_size: int = 17, code_dimension: int = 5, **arguments: Any) -> VectorQuantizer:
    return VectorQuantizer(codebook_size=codebook_size, code_dimension=code_dimension, **arguments)


def buffers(quantizer: VectorQuantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


def changed(before: dict[str, Tensor], quantizer: VectorQuantizer) -> list[str]:
    return [name for name, tensor in quantizer.state_dict().items() if not torch.equal(tensor, before[name])]


def learn(quantizer: VectorQuantizer, latents: Tensor) -> None:
    codebooks = CodebookStep({"top": quantizer})
    codebooks.add({"top": quantizer(latents)})
    codebooks.step()


def settled(quantizer: VectorQuantizer) -> VectorQuantizer:
    """Past the early steps, in which averages move faster."""
    quantizer.codebooks[0].steps.fill_(100_000)
    return quantizer


def as_rows(tensor: Tensor) -> Tensor:
    """`[B, D, *grid]` to `[N, D]`."""
    return torch.movedim(tensor, 1, -1).flatten(0, -2)


# --- vectors to codes and back ---


@learns
@pytest.mark.parametrize("grid", [(7,), (3, 7), (2, 3, 5)])
def test_shapes_and_types_are_the_same_in_training_and_evaluation(learning: Learning, grid: tuple[int, ...]) -> None:
    quantizer = quantizer_of(learning=learning)
    latents = torch.randn(2, 5, *grid)
    trained, evaluated = quantizer.train()(latents), quantizer.eval()(latents)
    for result in (trained, evaluated):
        assert result.vectors.shape == latents.shape
        assert result.codes.shape == (2, *grid)
        assert result.codes.dtype == torch.int64
        assert all(loss.dtype == torch.float32 and loss.shape == () for loss in result.losses.values())
    assert torch.equal(trained.codes, evaluated.codes)
    assert trained.losses.keys() == evaluated.losses.keys()
    assert len(trained.statistics) == 1
    assert evaluated.statistics == []


@given(batch=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 99))
def test_decode_undoes_encode_to_the_last_bit(batch: int, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = quantizer_of()
    latents = 3 * torch.randn(batch, 5, height, width)
    result = quantizer(latents)
    assert torch.equal(quantizer.decode(result.codes), result.vectors)
    assert torch.equal(quantizer.encode(latents), result.codes)
    assert torch.equal(quantizer.encode(quantizer.decode(result.codes)), result.codes)


def test_each_position_gets_its_own_vector() -> None:
    quantizer = quantizer_of(3, 2)
    quantizer.codebooks[0].vectors.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    latents = torch.tensor([[[[9.0, 1.0], [0.0, 1.0]], [[1.0, 0.5], [8.0, 2.0]]]])
    assert quantizer.encode(latents).tolist() == [[[1, 0], [2, 0]]]
    assert quantizer.decode(torch.tensor([[[1, 0], [2, 0]]]))[0, :, 1, 0].tolist() == [0.0, 10.0]


def test_memory_layout_changes_nothing() -> None:
    quantizer = quantizer_of()
    latents = torch.randn(2, 5, 3, 7)
    plain, channels_last = quantizer(latents), quantizer(latents.to(memory_format=torch.channels_last))
    assert torch.equal(plain.codes, channels_last.codes)
    assert torch.equal(plain.vectors, channels_last.vectors)


@pytest.mark.parametrize("codes", [[[0, 17]], [[-1, 3]]])
def test_codes_out_of_range_are_refused_with_the_range(codes: list[list[int]]) -> None:
    with pytest.raises(DataError, match=r"codes must be in 0 \.\. 16; received"):
        quantizer_of().decode(torch.tensor(codes))


def test_latents_of_another_dimension_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[B, 5, \*grid\].*received \[2, 3, 5\]"):
        quantizer_of()(torch.randn(2, 3, 5))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"codebook_size": 0}, "codebook_size"),
        ({"code_dimension": 0}, "code_dimension"),
        ({"learning": "ema"}, "learning must be moving_average or gradient; received ema"),
        ({"metric": "manhattan"}, "metric must be euclidean or cosine; received manhattan"),
        ({"estimator": "none"}, "estimator must be straight_through, rotation or diveq; received none"),
        ({"estimator": "diveq", "learning": "gradient", "diveq_variance": -1.0}, "diveq_variance"),
        ({"heads": 0}, "codes per position"),
        ({"heads": 3}, "5 dimensions cannot be cut into 3"),
        ({"projection_dimension": 0}, "0 dimensions"),
        ({"decay": 1.0}, "decay"),
        ({"decay": -0.1}, "decay"),
        ({"revival_threshold": 1.0}, "revival_threshold"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        quantizer_of(**arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"estimator": "diveq"}, "would move it a second time"),
        ({"estimator": "diveq", "learning": "gradient", "metric": "cosine"}, "near the unit sphere"),
        ({"metric": "cosine", "heads": 5}, "the unit sphere has two points"),
    ],
)
def test_combinations_that_diverge_or_mean_nothing_are_refused_with_the_reason(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        quantizer_of(**arguments)


def test_kl_of_the_one_hot_posterior_to_the_uniform_prior_is_log_k_and_no_loss() -> None:
    """Equations (5) to (8)."""
    quantizer = quantizer_of(13, learning="gradient")
    latents = torch.randn(2, 5, 3, 7)
    posterior = functional.one_hot(quantizer.encode(latents), 13).double()
    kl = torch.special.xlogy(posterior, posterior * 13).sum(dim=-1)
    assert torch.equal(posterior.sum(dim=-1), torch.ones(2, 3, 7, dtype=torch.float64))
    assert torch.allclose(kl, torch.full_like(kl, math.log(13)), atol=1e-12)
    assert quantizer(latents).losses.keys() == {"commitment", "codebook"}


# --- losses and gradients, equation (9) ---


@learns
def test_gradient_at_the_vectors_reaches_the_latents_unchanged(learning: Learning) -> None:
    quantizer = quantizer_of(learning=learning)
    latents = torch.randn(2, 5, 3, 7, requires_grad=True)
    upstream = torch.randn(2, 5, 3, 7)
    quantizer(latents).vectors.backward(upstream)
    assert latents.grad is not None
    assert torch.equal(latents.grad, upstream)
    assert quantizer.codebooks[0].vectors.grad is None, "the decoder does not move the codebook"


def test_terms_and_their_gradients_are_those_of_the_closed_form() -> None:
    quantizer = quantizer_of(7, 3, learning="gradient").double()
    latents = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    result = quantizer(latents)
    rows, vectors, codes = as_rows(latents.detach()), as_rows(result.vectors.detach()), result.codes.flatten()
    expected = (rows - vectors).square().mean()
    assert torch.allclose(result.losses["commitment"], expected, rtol=1e-14)
    assert torch.allclose(result.losses["codebook"], expected, rtol=1e-14)

    of_latents, of_codebook = torch.autograd.grad(
        result.losses["commitment"], [latents, quantizer.codebooks[0].vectors], retain_graph=True, allow_unused=True
    )
    assert of_codebook is None, "commitment moves only the encoder"
    assert torch.allclose(as_rows(of_latents), 2 * (rows - vectors) / rows.numel(), rtol=1e-13)

    of_latents, of_codebook = torch.autograd.grad(
        result.losses["codebook"], [latents, quantizer.codebooks[0].vectors], allow_unused=True
    )
    assert of_latents is None, "the codebook loss moves only the codebook"
    by_hand = torch.zeros(7, 3, dtype=torch.float64)
    for row, code in zip(rows, codes, strict=True):
        by_hand[code] += 2 * (quantizer.codebooks[0].vectors.detach()[code] - row) / rows.numel()
    assert torch.allclose(of_codebook, by_hand, atol=1e-14)


def test_moving_averages_take_no_codebook_loss() -> None:
    result = quantizer_of()(torch.randn(2, 5, 3))
    assert result.losses.keys() == {"commitment"}


@learns
def test_the_length_of_latents_does_not_run_away_with_the_cosine_metric(learning: Learning) -> None:
    """What a decoder asks of directions alone lets lengths grow with every step; the commitment holds them."""
    torch.manual_seed(0)
    quantizer = quantizer_of(learning=learning, metric="cosine")
    latents = torch.nn.Parameter(torch.randn(1, 5, 211))
    wanted = functional.normalize(torch.randn(1, 5, 211), dim=1)
    optimizer = torch.optim.Adam([latents, *quantizer.parameters()], lr=0.05)
    codebooks = CodebookStep({"top": quantizer})
    for _ in range(200):
        result = quantizer(latents)
        codebooks.add({"top": result})
        loss = (result.vectors - wanted).square().mean() + 0.25 * sum(result.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        codebooks.step()
    assert float(latents.detach().norm(dim=1).max()) < 4


def test_diveq_moves_latents_and_codebook_by_the_reconstruction_alone() -> None:
    quantizer = quantizer_of(learning="gradient", estimator="diveq", diveq_variance=0.0).double()
    latents = torch.randn(2, 5, 3, 7, dtype=torch.float64, requires_grad=True)
    result = quantizer(latents)
    assert result.losses == {}
    assert torch.allclose(result.vectors, quantizer.decode(result.codes), atol=1e-14)
    result.vectors.square().sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad != 0).any())
    moved = quantizer.codebooks[0].vectors.grad
    used = result.codes.unique()
    assert bool((moved[used] != 0).any(dim=1).all())
    assert torch.equal(quantizer.eval()(latents).vectors, quantizer.decode(result.codes)), "no noise in evaluation"


# --- heads and projections ---


def test_heads_are_quantizers_of_their_slices() -> None:
    product = quantizer_of(11, 6, heads=3).double()
    latents = torch.randn(2, 6, 3, 7).double()
    result = product(latents)
    assert result.codes.shape == (2, 3, 7, 3)
    assert result.counts.shape == (3, 11)
    commitments = []
    for head in range(3):
        single = quantizer_of(11, 2).double()
        single.codebooks[0].load_state_dict(product.codebooks[head].state_dict())
        part = single(latents[:, 2 * head : 2 * head + 2])
        assert torch.equal(result.codes[..., head], part.codes)
        assert torch.equal(result.vectors[:, 2 * head : 2 * head + 2], part.vectors)
        assert torch.equal(result.statistics[head].sums, part.statistics[0].sums)
        commitments.append(part.losses["commitment"])
    assert torch.allclose(result.losses["commitment"], torch.stack(commitments).mean())


def test_each_head_learns_its_own_codebook() -> None:
    quantizer = quantizer_of(11, 6, heads=3)
    quantizer.initialize(torch.randn(500, 6), 1, Reduction())
    before = [codebook.vectors.clone() for codebook in quantizer.codebooks]
    learn(quantizer, torch.randn(2, 6, 31))
    for codebook, old in zip(quantizer.codebooks, before, strict=True):
        assert bool(codebook.initialized)
        assert not torch.equal(codebook.vectors, old)


def test_codes_are_chosen_in_the_projected_space_and_mapped_back() -> None:
    quantizer = quantizer_of(11, 7, projection_dimension=3).double()
    latents = torch.randn(2, 7, 5).double()
    result = quantizer(latents)
    inner = torch.movedim(latents, 1, -1).flatten(0, -2) @ quantizer.project_in.weight.T + quantizer.project_in.bias
    codes = torch.cdist(inner, quantizer.codebooks[0].vectors).argmin(dim=1)
    assert torch.equal(result.codes.flatten(), codes)
    expected = quantizer.codebooks[0].vectors[codes] @ quantizer.project_out.weight.T + quantizer.project_out.bias
    assert torch.allclose(as_rows(result.vectors), expected)
    assert result.statistics[0].sums.shape == (11, 3)
    expected = (inner - quantizer.codebooks[0].vectors[codes]).square().mean()
    assert torch.allclose(result.losses["commitment"], expected)


def test_with_a_projection_codes_decode_to_the_reconstruction_and_both_maps_learn() -> None:
    quantizer = quantizer_of(11, 7, projection_dimension=3)
    latents = torch.randn(2, 7, 5, requires_grad=True)
    result = quantizer(latents)
    assert torch.equal(quantizer.decode(result.codes), result.vectors)
    result.vectors.square().sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in quantizer.parameters())
    assert latents.grad is not None
    assert quantizer.mean_vector().shape == (7,)


# --- masks ---


@learns
@given(height=st.integers(1, 5), width=st.integers(1, 7), more=st.integers(0, 3), seed=st.integers(0, 99))
def test_masked_positions_count_as_if_they_were_not_there(
    learning: Learning, height: int, width: int, more: int, seed: int
) -> None:
    torch.manual_seed(seed)
    quantizer = quantizer_of(learning=learning).double()
    inner = torch.randn(2, 5, height, width, dtype=torch.float64)
    padded = 1e3 * torch.randn(2, 5, height + more, width + 1, dtype=torch.float64)
    padded[:, :, :height, :width] = inner
    mask = torch.zeros(height + more, width + 1, dtype=torch.bool)
    mask[:height, :width] = True
    expected, result = quantizer(inner), quantizer(padded, mask)
    assert torch.equal(result.codes[:, :height, :width], expected.codes)
    for name, loss in expected.losses.items():
        assert torch.allclose(result.losses[name], loss, rtol=1e-12)
    assert torch.equal(result.statistics[0].counts, expected.statistics[0].counts)
    assert torch.equal(result.statistics[0].candidates, expected.statistics[0].candidates)
    assert torch.allclose(result.statistics[0].sums, expected.statistics[0].sums, atol=1e-12)


def test_masked_positions_take_no_gradient_from_the_losses() -> None:
    quantizer = quantizer_of()
    latents = torch.randn(2, 5, 7, requires_grad=True)
    mask = torch.arange(14).view(2, 7) % 3 == 0
    quantizer(latents, mask).losses["commitment"].backward()
    assert latents.grad is not None
    assert torch.equal((as_rows(latents.grad) != 0).any(dim=1), mask.flatten())


# --- what changes the codebook, and what does not ---


def test_forward_writes_nothing_in_training() -> None:
    quantizer = quantizer_of()
    before = buffers(quantizer)
    quantizer(torch.randn(2, 5, 3, requires_grad=True)).vectors.sum().backward()
    assert changed(before, quantizer) == []


@learns
@pytest.mark.parametrize("state", ["eval", "frozen"])
def test_nothing_is_learned_in_evaluation_or_frozen(learning: Learning, state: str) -> None:
    quantizer = quantizer_of(learning=learning)
    if state == "eval":
        quantizer.eval()
    else:
        quantizer.freeze()
    before = buffers(quantizer)
    latents = torch.randn(2, 5, 3, requires_grad=True)
    codebooks = CodebookStep({"top": quantizer})
    result = quantizer(latents)
    codebooks.add({"top": result})
    codebooks.step()
    assert result.statistics == []
    assert changed(before, quantizer) == []
    (result.vectors.square().sum() + result.losses["commitment"]).backward()
    assert latents.grad is not None
    assert bool((latents.grad != 0).any()), "gradients still reach the encoder"


def test_a_frozen_codebook_takes_no_gradient() -> None:
    quantizer = quantizer_of(learning="gradient")
    quantizer.freeze()
    result = quantizer(torch.randn(2, 5, 3, requires_grad=True))
    sum(result.losses.values()).backward()
    assert quantizer.codebooks[0].vectors.grad is None


def test_no_grad_forward_in_training_gives_statistics_and_writes_nothing() -> None:
    quantizer = quantizer_of()
    before = buffers(quantizer)
    with torch.no_grad():
        assert quantizer(torch.randn(2, 5, 3)).statistics
    assert changed(before, quantizer) == []


def test_statistics_hold_no_graph() -> None:
    (statistics,) = quantizer_of()(torch.randn(2, 5, 3, requires_grad=True)).statistics
    assert not any(tensor.requires_grad for tensor in (statistics.counts, statistics.sums, statistics.candidates))


def test_statistics_are_counts_sums_and_latents_of_the_batch() -> None:
    quantizer = quantizer_of(7, 3).double()
    latents = torch.randn(2, 3, 5, 11, dtype=torch.float64)
    result = quantizer(latents)
    rows, codes = as_rows(latents), result.codes.flatten()
    counts = [int((codes == code).sum()) for code in range(7)]
    sums = torch.stack([rows[codes == code].sum(dim=0) for code in range(7)])
    assert result.statistics[0].counts.tolist() == counts
    assert result.statistics[0].counts.dtype == torch.int64
    assert torch.allclose(result.statistics[0].sums, sums, atol=1e-12)


# --- precision ---


@learns
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_casts_of_the_module_keep_the_codebook(learning: Learning, cast: str) -> None:
    quantizer = quantizer_of(learning=learning)
    before = buffers(quantizer)
    kind = torch.float16 if cast == "half" else torch.bfloat16
    for module in (getattr(quantizer, cast)(), quantizer.to(kind), torch.nn.Sequential(quantizer).to(kind)[0]):
        assert module.codebooks[0].vectors.dtype == torch.float32
        assert module.codebooks[0].moving_counts.dtype == torch.float32
        assert changed(before, module) == []
    latents = torch.randn(2, 5, 3, dtype=kind)
    result = quantizer(latents)
    assert result.vectors.dtype == kind
    assert result.losses["commitment"].dtype == torch.float32
    assert torch.equal(quantizer.decode(result.codes).to(kind), result.vectors)
    assert quantizer.double().codebooks[0].vectors.dtype == torch.float64


@learns
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_gives_the_same_codes_and_finite_losses(learning: Learning, kind: torch.dtype) -> None:
    plain = quantizer_of(learning=learning)
    mixed = quantizer_of(learning=learning)
    mixed.load_state_dict(plain.state_dict())
    for _ in range(200):
        latents = 100 * torch.randn(1, 5, 31)
        expected = plain(latents)
        learn(plain, latents)
        with torch.autocast("cpu", kind):
            result = mixed(latents)
            learn(mixed, latents)
        assert torch.equal(result.codes, expected.codes)
        assert all(bool(loss.isfinite()) and loss.dtype == torch.float32 for loss in result.losses.values())
    floating = [tensor for tensor in mixed.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float32}
    assert changed(buffers(plain), mixed) == []


# --- compilers ---


def test_compiles_without_a_graph_break_and_exports() -> None:
    quantizer = quantizer_of().eval()
    latents = torch.randn(2, 5, 3, 7)
    expected = quantizer(latents)
    compiled: QuantizerResult = torch.compile(quantizer, backend="eager", fullgraph=True)(latents)
    exported = torch.export.export(quantizer, (latents,)).module()(latents)
    for result in (compiled, exported):
        assert torch.equal(result.codes, expected.codes)
        assert torch.equal(result.vectors, expected.vectors)
        assert torch.equal(result.losses["commitment"], expected.losses["commitment"])


# --- the codebook as a whole ---


@pytest.mark.parametrize("dimension", [8, 32, 256])
@pytest.mark.parametrize("starts_from_kmeans", [True, False])
def test_nearly_all_codes_are_used_after_a_few_steps(dimension: int, starts_from_kmeans: bool) -> None:
    """A fixed mixture of more heaps than codes, of unequal sizes and with an offset; default settings."""
    generator = torch.Generator().manual_seed(11)
    centers = 3 + torch.randn(97, dimension, generator=generator)
    shares = torch.rand(97, generator=generator) + 0.1

    def draw(number: int) -> Tensor:
        heap = torch.multinomial(shares, number, replacement=True, generator=generator)
        return (centers[heap] + 0.3 * torch.randn(number, dimension, generator=generator)).T.unsqueeze(0)

    quantizer = quantizer_of(61, dimension)
    if starts_from_kmeans:
        quantizer.initialize(draw(32 * 61)[0].T, 4, Reduction())
    for _ in range(40):
        learn(quantizer, draw(499))
    used = quantizer.eval()(draw(4001)).codes.unique()
    assert len(used) >= 0.95 * 61
