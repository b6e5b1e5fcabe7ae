"""Vectors that a prior is told: standardized, hidden by a stand-in, drawn from as taught."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from hvq.errors import DataError
from hvq.priors import Condition, sample_hierarchy
from hvq.priors.vector_reader import VectorReader, hidden_rows, standardize_vectors
from tests.priors.small import GRIDS, KINDS, SIZES, codes_of, small_prior

V = 5


def vectors_of(rows: int) -> Tensor:
    return torch.randn(rows, V, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


def reader() -> VectorReader:
    made = VectorReader(V, 3).double()
    torch.nn.init.normal_(made.unknown)
    return made


def test_vectors_are_standardized_before_the_linear_map() -> None:
    made, vectors = reader(), 100 + vectors_of(7) * torch.tensor([1.0, 2, 3, 5, 7])
    mean, deviation = vectors.mean(0), vectors.std(0, correction=0)
    made.standardize(mean, deviation)
    by_hand = (vectors - mean) / deviation @ made.linear.weight.T + made.linear.bias
    torch.testing.assert_close(made(vectors, 7), by_hand, rtol=1e-12, atol=1e-12)


def test_a_number_that_never_changes_is_not_divided() -> None:
    made = reader()
    made.standardize(torch.full((V,), 0.1), torch.tensor([1e-17, 0.0, 2.0, 1e-9, 3.0]))
    assert made.deviation.tolist() == [1, 1, 2, 1, 3]


def test_a_hidden_vector_is_the_stand_in_and_not_one_of_zeros() -> None:
    made, vectors = reader(), vectors_of(3)
    vectors[1] = torch.nan
    found = made(vectors, 3)
    assert hidden_rows(vectors).tolist() == [False, True, False]
    assert torch.equal(found[1], made.unknown)
    assert torch.equal(made(None, 3), made.unknown.expand(3, -1))
    assert torch.equal(found[[0, 2]], made(vectors[[0, 2]], 2))
    assert not torch.allclose(made(torch.zeros(1, V), 1)[0], made.unknown)


def test_gradients_of_hidden_vectors_go_to_the_stand_in_alone() -> None:
    made, vectors = reader(), vectors_of(2)
    vectors[1] = torch.nan
    made(vectors, 2)[1].sum().backward()
    assert made.unknown.grad.tolist() == [1, 1, 1]
    assert not bool(made.linear.weight.grad.any())


@pytest.mark.parametrize(
    ("vectors", "fault"),
    [
        (torch.tensor([[1.0] * V, [1.0, torch.nan, 1.0, 1.0, 1.0]]), "NaN throughout.*row 1"),
        (torch.tensor([[math.inf] * V, [1.0] * V]), "row 0 holds"),
        (torch.ones(3, V), r"floating point \[2, 5\]"),
        (torch.ones(2, V, dtype=torch.int64), "received torch.int64"),
    ],
)
def test_what_is_no_vector_is_refused(vectors: Tensor, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        reader()(vectors, 2)


def test_half_precision_leaves_mean_and_deviation() -> None:
    made = VectorReader(V, 3)
    made.standardize(torch.full((V,), 1000.3), torch.full((V,), 0.01))
    exact = made(torch.full((1, V), 1000.31), 1)
    made.to(torch.bfloat16)
    assert {made.mean.dtype, made.deviation.dtype} == {torch.float32}
    assert made.linear.weight.dtype == torch.bfloat16
    torch.testing.assert_close(made(torch.full((1, V), 1000.31), 1).float(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_steps_give_the_logits_of_teacher_forcing(kind: str) -> None:
    prior = small_prior("middle", kind, vector_size=V, codes_per_position=3).double()
    standardize_vectors(prior, torch.arange(V), 1 + torch.arange(V))
    vectors = vectors_of(3)
    vectors[2] = torch.nan
    condition = Condition({"top": codes_of("top", 3)}, torch.tensor([1, -1, 2]), vector=vectors)
    codes = torch.randint(SIZES["middle"], (3, *GRIDS["middle"], 3))
    whole = prior(codes, condition).flatten(1, -2)
    cache, previous = prior.make_cache(condition, 3, GRIDS["middle"]), None
    for position in range(whole.shape[1]):
        logits, cache = prior.step(previous, cache)
        torch.testing.assert_close(logits, whole[:, position], rtol=0, atol=1e-10)
        previous = codes.flatten(1)[:, position]
    others = prior(codes, Condition(condition.codes, condition.labels, vector=vectors_of(3).flip(0))).flatten(1, -2)
    assert not torch.allclose(others, whole, atol=1e-3), "the vector counts"


@torch.no_grad()
def test_a_sample_hangs_on_its_number_label_and_vector_alone() -> None:
    priors = {
        "top": small_prior(layers=1, vector_size=V).double(),
        "middle": small_prior("middle", layers=1).double(),  # knows of no vectors
    }
    grids, vectors, labels = dict.fromkeys(priors, (1, 3)), vectors_of(7), [n % 4 - 1 for n in range(7)]
    vectors[3] = torch.nan
    whole = sample_hierarchy(priors, grids, samples=range(7), labels=labels, vectors=vectors, chunk_size=7)
    rows = [5, 3, 0]
    part = sample_hierarchy(
        priors, grids, samples=rows, labels=[labels[n] for n in rows], vectors=vectors[rows], chunk_size=2
    )
    assert all(torch.equal(part[level], whole[level][rows]) for level in priors)
    hidden = sample_hierarchy(priors, grids, samples=range(7), labels=labels, chunk_size=7)
    assert torch.equal(hidden["top"][3], whole["top"][3])
    assert not torch.equal(hidden["top"], whole["top"])


def test_vectors_that_are_not_those_of_the_priors_are_refused() -> None:
    priors = {"top": small_prior(vector_size=V)}
    grids = {"top": (1, 2)}
    for vectors, fault in [
        (torch.zeros(2, V), r"floating point \[3, 5\] for the prior of level top; received .* \[2, 5\]"),
        (torch.zeros(3, V + 1), r"received .* \[3, 6\]"),
        (torch.tensor([[1.0] * V, [1.0] * V, [torch.nan, 1.0, 1.0, 1.0, 1.0]]), "row 2"),
    ]:
        with pytest.raises(DataError, match=fault):
            sample_hierarchy(priors, grids, samples=range(3), vectors=vectors)
    with pytest.raises(DataError, match="none of the priors was trained with any; leave them out"):
        sample_hierarchy({"top": small_prior()}, grids, samples=[0], vectors=torch.zeros(1, V))


def test_it_compiles_without_a_graph_break() -> None:
    prior, vectors = small_prior("middle", "pixelcnn", vector_size=V), vectors_of(2).float()
    vectors[1] = torch.nan
    codes, condition = codes_of("middle", 2), Condition({"top": codes_of("top", 2)}, vector=vectors)
    compiled = torch.compile(prior, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(codes, condition), prior(codes, condition), atol=1e-4)
    torch._dynamo.reset()


@torch.no_grad()
def test_priors_in_half_precision_are_told_vectors_too() -> None:
    prior = small_prior(layers=1, vector_size=V)
    standardize_vectors(prior, torch.full((V,), 1000.0), torch.full((V,), 0.5))
    vectors = 1000 + vectors_of(29).float() / 2
    drawn = [
        sample_hierarchy({"top": some}, {"top": (1, 2)}, samples=range(29), vectors=vectors)["top"]
        for some in (prior, copy.deepcopy(prior).to(torch.bfloat16))
    ]
    agreement = float((drawn[0] == drawn[1]).double().mean())
    assert agreement > 0.8, "rounded logits change a few codes, a rounded mean would change all"
