from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hvq.distributed import Reduction
from hvq.errors import ConfigurationError, DataError
from hvq.quantizers import CodebookStep, QuantizerResult, VectorQuantizer

LEARNING: tuple[Literal["moving_average", "gradient"], ...] = ("moving_average", "gradient")
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
    quantizer.steps.fill_(100_000)
    return quantizer


def as_rows(tensor: Tensor) -> Tensor:
    """`[B, D, *grid]` to `[N, D]`."""
    return torch.movedim(tensor, 1, -1).flatten(0, -2)


# --- vectors to codes and back ---


@learns
@pytest.mark.parametrize("grid", [(7,), (3, 7), (2, 3, 5)])
def test_shapes_and_types_are_the_same_in_training_and_evaluation(
    learning: Literal["moving_average", "gradient"], grid: tuple[int, ...]
) -> None:
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
    assert trained.statistics is not None
    assert evaluated.statistics is None


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
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
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
        ({"decay": 1.0}, "decay"),
        ({"decay": -0.1}, "decay"),
        ({"revival_threshold": 1.0}, "revival_threshold"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
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
def test_gradient_at_the_vectors_reaches_the_latents_unchanged(learning: Literal["moving_average", "gradient"]) -> None:
    quantizer = quantizer_of(learning=learning)
    latents = torch.randn(2, 5, 3, 7, requires_grad=True)
    upstream = torch.randn(2, 5, 3, 7)
    quantizer(latents).vectors.backward(upstream)
    assert latents.grad is not None
    assert torch.equal(latents.grad, upstream)
    assert quantizer.codebook.grad is None, "the decoder does not move the codebook"


def test_terms_and_their_gradients_are_those_of_the_closed_form() -> None:
    quantizer = quantizer_of(7, 3, learning="gradient").double()
    latents = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    result = quantizer(latents)
    rows, vectors, codes = as_rows(latents.detach()), as_rows(result.vectors.detach()), result.codes.flatten()
    expected = (rows - vectors).square().mean()
    assert torch.allclose(result.losses["commitment"], expected, rtol=1e-14)
    assert torch.allclose(result.losses["codebook"], expected, rtol=1e-14)

    of_latents, of_codebook = torch.autograd.grad(
        result.losses["commitment"], [latents, quantizer.codebook], retain_graph=True, allow_unused=True
    )
    assert of_codebook is None, "commitment moves only the encoder"
    assert torch.allclose(as_rows(of_latents), 2 * (rows - vectors) / rows.numel(), rtol=1e-13)

    of_latents, of_codebook = torch.autograd.grad(
        result.losses["codebook"], [latents, quantizer.codebook], allow_unused=True
    )
    assert of_latents is None, "the codebook loss moves only the codebook"
    by_hand = torch.zeros(7, 3, dtype=torch.float64)
    for row, code in zip(rows, codes, strict=True):
        by_hand[code] += 2 * (quantizer.codebook.detach()[code] - row) / rows.numel()
    assert torch.allclose(of_codebook, by_hand, atol=1e-14)


def test_moving_averages_take_no_codebook_loss() -> None:
    result = quantizer_of()(torch.randn(2, 5, 3))
    assert result.losses.keys() == {"commitment"}


# --- masks ---


@learns
@given(height=st.integers(1, 5), width=st.integers(1, 7), more=st.integers(0, 3), seed=st.integers(0, 99))
def test_masked_positions_count_as_if_they_were_not_there(
    learning: Literal["moving_average", "gradient"], height: int, width: int, more: int, seed: int
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
    assert torch.equal(result.statistics.counts, expected.statistics.counts)
    assert torch.equal(result.statistics.candidates, expected.statistics.candidates)
    assert torch.allclose(result.statistics.sums, expected.statistics.sums, atol=1e-12)


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
def test_nothing_is_learned_in_evaluation_or_frozen(
    learning: Literal["moving_average", "gradient"], state: str
) -> None:
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
    assert result.statistics is None
    assert changed(before, quantizer) == []
    (result.vectors.square().sum() + result.losses["commitment"]).backward()
    assert latents.grad is not None
    assert bool((latents.grad != 0).any()), "gradients still reach the encoder"


def test_a_frozen_codebook_takes_no_gradient() -> None:
    quantizer = quantizer_of(learning="gradient")
    quantizer.freeze()
    result = quantizer(torch.randn(2, 5, 3, requires_grad=True))
    sum(result.losses.values()).backward()
    assert quantizer.codebook.grad is None


def test_no_grad_forward_in_training_gives_statistics_and_writes_nothing() -> None:
    quantizer = quantizer_of()
    before = buffers(quantizer)
    with torch.no_grad():
        assert quantizer(torch.randn(2, 5, 3)).statistics is not None
    assert changed(before, quantizer) == []


def test_statistics_hold_no_graph() -> None:
    statistics = quantizer_of()(torch.randn(2, 5, 3, requires_grad=True)).statistics
    assert not any(tensor.requires_grad for tensor in (statistics.counts, statistics.sums, statistics.candidates))


def test_statistics_are_counts_sums_and_latents_of_the_batch() -> None:
    quantizer = quantizer_of(7, 3).double()
    latents = torch.randn(2, 3, 5, 11, dtype=torch.float64)
    result = quantizer(latents)
    rows, codes = as_rows(latents), result.codes.flatten()
    counts = [int((codes == code).sum()) for code in range(7)]
    sums = torch.stack([rows[codes == code].sum(dim=0) for code in range(7)])
    assert result.statistics.counts.tolist() == counts
    assert result.statistics.counts.dtype == torch.int64
    assert torch.allclose(result.statistics.sums, sums, atol=1e-12)


@pytest.mark.parametrize("codebook_size", [7, 512])
def test_candidates_for_revival_are_latents_in_proportion_to_their_squared_error(codebook_size: int) -> None:
    """A third of the latents is met exactly, a third lies at distance 1, and a third at distance √3."""
    quantizer = quantizer_of(codebook_size, 1).double()
    quantizer.codebook.copy_(1000.0 * torch.arange(codebook_size).double().unsqueeze(1))
    errors = torch.tensor([0.0, 1.0, 3.0**0.5]).repeat(67).double()
    latents = 1000.0 + errors.view(1, 1, -1)
    candidates = quantizer(latents).statistics.candidates[:, 0] - 1000.0
    number = max(16, codebook_size // 16)
    assert candidates.shape == (number,)
    for distance, share in [(0.0, 0.0), (1.0, 0.25), (3.0**0.5, 0.75)]:
        taken = int((candidates - distance).abs().lt(1e-6).sum())
        assert abs(taken - share * number) <= 2


def test_where_all_latents_are_met_candidates_are_spread_over_the_batch() -> None:
    quantizer = quantizer_of(101, 1).double()
    quantizer.codebook.copy_(torch.arange(101).double().unsqueeze(1))
    candidates = quantizer(torch.arange(101).double().view(1, 1, -1)).statistics.candidates.flatten()
    assert len(candidates.unique()) == 16
    assert float(candidates.sort().values.diff().max()) < 10


# --- moving averages ---


@pytest.mark.parametrize("decay", [0.99, 0.9, 0.0])
def test_moving_averages_follow_the_formulas(decay: float) -> None:
    """Appendix A.1 of the paper, with its smoothing where counts divide; early steps weigh 9 / (10 + t)."""
    size, dimension, smoothing = 5, 3, 1e-5
    quantizer = quantizer_of(size, dimension, decay=decay, revival_threshold=0.0).double()
    counts, sums = [1.0] * size, quantizer.codebook.tolist()
    generator = torch.Generator().manual_seed(7)
    for t in range(19):
        latents = torch.randn(2, dimension, 7, generator=generator, dtype=torch.float64)
        codes = quantizer.encode(latents).flatten().tolist()
        learn(quantizer, latents)
        weight = max(1 - decay, 9 / (10 + t))
        rows = as_rows(latents).tolist()
        for code in range(size):
            own = [row for row, chosen in zip(rows, codes, strict=True) if chosen == code]
            counts[code] = (1 - weight) * counts[code] + weight * len(own)
            for d in range(dimension):
                sums[code][d] = (1 - weight) * sums[code][d] + weight * sum(row[d] for row in own)
        total = sum(counts)
        smoothed = [(count + smoothing) / (total + size * smoothing) * total for count in counts]
        expected = torch.tensor([[s / n for s in row] for row, n in zip(sums, smoothed, strict=True)]).double()
        assert torch.allclose(quantizer.moving_counts, torch.tensor(counts).double(), atol=1e-6)
        assert torch.allclose(quantizer.codebook, expected, atol=1e-5)


def test_the_early_weight_falls_to_one_minus_decay() -> None:
    quantizer = quantizer_of(2, 1, revival_threshold=0.0).double()
    nothing, none = torch.zeros(2, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.float64)
    for step, kept in [(0, 0.1), (8, 0.5), (889, 1 - 9 / 899), (891, 0.99), (10**6, 0.99)]:
        quantizer.steps.fill_(step)
        quantizer.moving_counts.fill_(1.0)
        quantizer.apply_statistics(nothing, torch.zeros(2, 1).double(), none)
        assert torch.allclose(quantizer.moving_counts, torch.full((2,), kept).double(), atol=1e-7), step
        assert int(quantizer.steps) == step + 1


def test_smoothed_counts_are_never_stored() -> None:
    quantizer = settled(quantizer_of(3, 2, revival_threshold=0.0)).double()
    counts, sums = quantizer.moving_counts.clone(), quantizer.moving_sums.clone()
    for _ in range(101):
        quantizer.apply_statistics(
            torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2).double(), torch.zeros(1, 2).double()
        )
    assert torch.allclose(quantizer.moving_counts, counts * 0.99**101, rtol=1e-12)
    assert torch.allclose(quantizer.moving_sums, sums * 0.99**101, rtol=1e-12)


def test_codes_never_used_again_stay_finite_without_revival() -> None:
    quantizer = quantizer_of(5, 3, decay=0.5, revival_threshold=0.0)
    for _ in range(211):
        learn(quantizer, torch.full((1, 3, 7), 2.0))
    assert bool(quantizer.codebook.isfinite().all())
    assert quantizer(torch.full((1, 3, 7), 2.0)).losses["commitment"] < 1e-9


# --- revival ---


def worn(learning: Literal["moving_average", "gradient"], dead: list[int], counts: float = 100.0) -> VectorQuantizer:
    """Eleven codes, some of them hardly used."""
    quantizer = settled(quantizer_of(11, 3, learning=learning)).double()
    quantizer.moving_counts.fill_(counts)
    quantizer.moving_counts[dead] = counts * 1e-3
    if learning == "moving_average":
        quantizer.moving_sums.copy_(quantizer.codebook * quantizer.moving_counts.unsqueeze(1))
    return quantizer


def steady(quantizer: VectorQuantizer) -> tuple[Tensor, Tensor]:
    """Statistics that leave the averages where they are."""
    counts = quantizer.moving_counts.round().long()
    return counts, quantizer.codebook.detach() * counts.unsqueeze(1)


@learns
def test_dead_codes_take_candidates_and_keep_them(learning: Literal["moving_average", "gradient"]) -> None:
    quantizer = worn(learning, dead=[2, 7])
    before = quantizer.codebook.detach().clone()
    candidates = 50 + torch.randn(5, 3, dtype=torch.float64)
    revived = quantizer.apply_statistics(*steady(quantizer), candidates)
    assert revived.nonzero().flatten().tolist() == [2, 7]
    assert torch.equal(quantizer.codebook[[2, 7]], candidates[:2])
    others = ~revived
    assert torch.allclose(quantizer.codebook[others], before[others], rtol=1e-4)
    again = quantizer.apply_statistics(*steady(quantizer), torch.zeros_like(candidates))
    assert not bool(again.any()), "a revived code is not dead at the next step"
    assert torch.allclose(quantizer.codebook[[2, 7]], candidates[:2], rtol=1e-4), "it survives the next update"


def test_a_revived_code_that_stays_unused_is_revived_again() -> None:
    quantizer = worn("moving_average", dead=[2])
    counts, sums = steady(quantizer)
    counts[2], sums[2] = 0, 0.0
    revivals = [
        bool(quantizer.apply_statistics(counts, sums, torch.randn(3, 3, dtype=torch.float64))[2]) for _ in range(301)
    ]
    assert 1 < sum(revivals) < 10


def test_no_more_codes_are_revived_than_candidates_the_least_used_first() -> None:
    quantizer = worn("moving_average", dead=[1, 4, 9])
    quantizer.moving_counts[[1, 4, 9]] = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64)
    nothing = torch.zeros(11, dtype=torch.int64), torch.zeros(11, 3, dtype=torch.float64)
    revived = quantizer.apply_statistics(*nothing, torch.ones(2, 3, dtype=torch.float64))
    assert revived.nonzero().flatten().tolist() == [4, 9]


@given(factor=st.sampled_from([2, 3, 7, 1000]), seed=st.integers(0, 99))
def test_the_threshold_means_the_same_for_any_number_of_latents(factor: int, seed: int) -> None:
    """A batch or a number of processes that is larger multiplies every count, and changes nothing."""
    torch.manual_seed(seed)
    counts = torch.randint(0, 30, (11,)) * torch.randint(0, 2, (11,))
    sums, candidates = torch.randn(11, 3).double() * counts.unsqueeze(1), torch.randn(11, 3).double()
    one = quantizer_of(11, 3).double()
    many = quantizer_of(11, 3).double()
    many.load_state_dict(one.state_dict())
    many.moving_counts.mul_(factor)
    many.moving_sums.mul_(factor)
    for _ in range(3):
        revived = one.apply_statistics(counts, sums, candidates)
        assert torch.equal(many.apply_statistics(counts * factor, sums * factor, candidates), revived)
    assert torch.allclose(many.codebook, one.codebook, rtol=1e-3, atol=1e-3)


def test_the_threshold_is_a_share_of_fair_usage() -> None:
    for share, expected in [(0.099, False), (0.101, True)]:
        quantizer = settled(quantizer_of(10, 3, revival_threshold=share)).double()
        usage = torch.full((10,), 110.0).double()
        usage[3] = 10.0
        quantizer.moving_counts.copy_(usage)
        revived = quantizer.apply_statistics(usage.long(), torch.zeros(10, 3).double(), torch.zeros(1, 3).double())
        assert bool(revived[3]) is expected


def test_revival_can_be_turned_off() -> None:
    quantizer = worn("moving_average", dead=[2, 7])
    quantizer.revival_threshold = 0.0
    assert not bool(quantizer.apply_statistics(*steady(quantizer), torch.zeros(5, 3).double()).any())


# --- the first codebook ---


def heaps(number: int, dimension: int, each: int = 32) -> Tensor:
    """Latents `[n, D]` in tight heaps far from each other."""
    centers = 10 * torch.randn(number, dimension)
    return (centers.repeat_interleave(each, dim=0) + 1e-3 * torch.randn(number * each, dimension)).double()


@pytest.mark.parametrize("number", [1, 7, 13])
def test_first_codebook_stays_put_in_a_step_on_the_same_latents(number: int) -> None:
    latents = heaps(number, 5)
    quantizer = quantizer_of(13).double()
    quantizer.initialize(latents, 1, Reduction())
    before = quantizer.codebook.clone()
    assert torch.allclose(quantizer.moving_sums, before * quantizer.moving_counts.unsqueeze(1), atol=1e-12)
    used = quantizer.encode(latents.T.unsqueeze(0)).unique()
    learn(quantizer, latents.T.unsqueeze(0))
    moved = (quantizer.codebook - before).norm(dim=1) / before.norm(dim=1)
    assert float(moved[used].max()) < 1e-3


def test_first_averages_are_those_of_one_step() -> None:
    latents = heaps(7, 5, each=30)
    quantizer = quantizer_of(7).double()
    quantizer.initialize(latents, 3, Reduction())
    assert float(quantizer.moving_counts.sum()) == pytest.approx(70.0)


@learns
def test_with_fewer_distinct_latents_than_codes_the_rest_is_dead_until_revived(
    learning: Literal["moving_average", "gradient"],
) -> None:
    latents = torch.randn(3, 5).repeat(11, 1)
    quantizer = quantizer_of(17, learning=learning)
    quantizer.initialize(latents, 1, Reduction())
    assert quantizer.alive.tolist() == [True] * 3 + [False] * 14
    assert bool(quantizer.codebook.isfinite().all())
    near_zero = 1e-3 * torch.randn(1, 5, 101)
    assert int(quantizer.encode(near_zero).max()) < 3, "dead codes are zero, and still not chosen"
    assert bool(quantizer.mean_vector().isfinite().all())
    learn(quantizer, near_zero)
    assert bool(quantizer.alive.all())
    assert len(quantizer.encode(near_zero).unique()) > 3


def test_that_it_was_initialized_is_kept_with_the_weights() -> None:
    quantizer = quantizer_of()
    assert not bool(quantizer.initialized)
    quantizer.initialize(torch.randn(101, 5), 1, Reduction())
    loaded = quantizer_of()
    loaded.load_state_dict(quantizer.state_dict())
    assert bool(loaded.initialized)
    assert changed(buffers(quantizer), loaded) == []


def test_the_mean_vector_is_weighted_by_usage() -> None:
    quantizer = quantizer_of(3, 2)
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [100.0, 100.0]]))
    quantizer.moving_counts.copy_(torch.tensor([3.0, 1.0, 5.0]))
    quantizer.alive.copy_(torch.tensor([True, True, False]))
    assert quantizer.mean_vector().tolist() == [0.75, 0.25]


# --- precision ---


@learns
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_casts_of_the_module_keep_the_codebook(learning: Literal["moving_average", "gradient"], cast: str) -> None:
    quantizer = quantizer_of(learning=learning)
    before = buffers(quantizer)
    kind = torch.float16 if cast == "half" else torch.bfloat16
    for module in (getattr(quantizer, cast)(), quantizer.to(kind), torch.nn.Sequential(quantizer).to(kind)[0]):
        assert module.codebook.dtype == torch.float32
        assert module.moving_counts.dtype == torch.float32
        assert changed(before, module) == []
    latents = torch.randn(2, 5, 3, dtype=kind)
    result = quantizer(latents)
    assert result.vectors.dtype == kind
    assert result.losses["commitment"].dtype == torch.float32
    assert torch.equal(quantizer.decode(result.codes).to(kind), result.vectors)
    assert quantizer.double().codebook.dtype == torch.float64


@learns
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_gives_the_same_codes_and_finite_losses(
    learning: Literal["moving_average", "gradient"], kind: torch.dtype
) -> None:
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
