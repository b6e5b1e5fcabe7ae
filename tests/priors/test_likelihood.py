from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hvq.data import CodeBatch
from hvq.priors import Condition, Prior
from hvq.priors.likelihood import hidden_labels, hidden_labels_and_vectors, nats_per_code, prior_inputs
from tests.priors.small import LEVELS, NUM_CLASSES, SIZES, coarser_than, codes_of, small_prior


def code_batch(rows: int, epoch: int = 0) -> CodeBatch:
    return CodeBatch(
        codes={level: codes_of(level, rows) for level in LEVELS},
        labels=torch.arange(rows) % (NUM_CLASSES + 1) - 1,
        indices=100 + torch.arange(rows),
        epochs=torch.full((rows,), epoch),
    )


def part(batch: CodeBatch, rows: slice) -> CodeBatch:
    codes = {level: codes[rows] for level, codes in batch.codes.items()}
    vectors = None if batch.vectors is None else batch.vectors[rows]
    return CodeBatch(codes, batch.labels[rows], batch.indices[rows], batch.epochs[rows], vectors)


def nats_by_hand(prior: Prior, batch: CodeBatch, level: str) -> float:
    """One image at a time, one code at a time."""
    nats = []
    for row in range(len(batch)):
        coarser = {name: batch.codes[name][row : row + 1] for name in coarser_than(level)}
        codes = batch.codes[level][row : row + 1]
        logits = prior(codes, Condition(coarser, batch.labels[row : row + 1])).flatten(0, -2).tolist()
        for scores, code in zip(logits, codes.flatten().tolist(), strict=True):
            nats.append(math.log(sum(math.exp(score) for score in scores)) - scores[code])
    return sum(nats) / len(nats)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("chunk_size", [1, 2, 5, 7])
def test_nats_are_those_counted_by_hand_for_any_chunk(level: str, chunk_size: int) -> None:
    prior, batch = small_prior(level).double(), code_batch(7)
    batches = [part(batch, slice(start, start + chunk_size)) for start in range(0, 7, chunk_size)]
    found = nats_per_code(prior, batches, level, level_names=LEVELS, chunk_size=chunk_size)
    assert found == pytest.approx(nats_by_hand(prior, batch, level), rel=1e-12)


def test_nats_of_a_uniform_prior_are_log_k() -> None:
    prior = small_prior()
    for parameter in prior.head.parameters():
        torch.nn.init.zeros_(parameter)
    found = nats_per_code(prior, [code_batch(5)], "top", level_names=LEVELS, chunk_size=5)
    assert found == pytest.approx(math.log(SIZES["top"]))


def test_the_mode_is_left_as_it_was_and_no_drop_out_counts() -> None:
    prior, batch = small_prior(dropout=0.5), code_batch(3)
    expected = nats_per_code(prior, [batch], "top", level_names=LEVELS, chunk_size=3)
    assert not prior.training
    assert nats_per_code(prior.train(), [batch], "top", level_names=LEVELS, chunk_size=3) == expected
    assert prior.training


def test_a_prior_is_told_coarser_codes_and_the_class() -> None:
    batch = code_batch(5)
    codes, condition = prior_inputs(batch, "middle", level_names=LEVELS, device=torch.device("cpu"))
    assert torch.equal(codes, batch.codes["middle"])
    assert tuple(condition.codes) == ("top",)
    assert torch.equal(condition.codes["top"], batch.codes["top"])
    assert torch.equal(condition.labels, batch.labels)


def test_hidden_classes_become_unknown() -> None:
    batch = code_batch(5)
    hidden = torch.tensor([False, True, True, False, False])
    _, condition = prior_inputs(batch, "top", level_names=LEVELS, device=torch.device("cpu"), hidden_labels=hidden)
    assert condition.labels.tolist() == [-1, -1, -1, 2, -1]
    assert batch.labels.tolist() == [-1, 0, 1, 2, -1], "the batch keeps its own"


def test_label_drop_out_hides_a_share_by_epoch_and_row() -> None:
    batch = code_batch(4001)
    hidden = hidden_labels(batch, seed=0, share=0.3)
    assert float(hidden.double().mean()) == pytest.approx(0.3, abs=0.03)
    rows = slice(17, 31)
    assert torch.equal(hidden_labels(part(batch, rows), seed=0, share=0.3), hidden[rows])
    for other in (hidden_labels(batch, seed=1, share=0.3), hidden_labels(code_batch(4001, epoch=1), seed=0, share=0.3)):
        assert not torch.equal(other, hidden)
    assert not bool(hidden_labels(batch, seed=0, share=0.0).any())


@pytest.mark.parametrize(("label_share", "vector_share"), [(0.3, 0.3), (0.2, 0.5), (0.5, 0.2), (0.0, 0.3), (0.3, 0.0)])
def test_class_and_vector_are_hidden_together_and_each_alone(label_share: float, vector_share: float) -> None:
    batch = code_batch(8009)
    batch = replace(batch, vectors=torch.zeros(len(batch), 1))
    shares = {"label_share": label_share, "vector_share": vector_share}
    labels, vectors = hidden_labels_and_vectors(batch, seed=0, **shares)
    rows = slice(17, 61)
    for whole, some in zip(
        (labels, vectors), hidden_labels_and_vectors(part(batch, rows), seed=0, **shares), strict=True
    ):
        assert torch.equal(some, whole[rows])

    def frequency(*masks: Tensor) -> float:
        return float(torch.stack(masks).all(dim=0).double().mean())

    less, more = min(label_share, vector_share), max(label_share, vector_share)
    alone = (1 - more) * less / 2
    classless = batch.labels < 0
    labels_of, vectors_of = labels[~classless], vectors[~classless]
    assert frequency(labels_of, vectors_of) == pytest.approx(less, abs=0.02)
    assert frequency(labels_of, ~vectors_of) == pytest.approx(alone + max(0, label_share - vector_share), abs=0.02)
    assert frequency(~labels_of, vectors_of) == pytest.approx(alone + max(0, vector_share - label_share), abs=0.02)
    assert frequency(vectors[classless]) == pytest.approx(vector_share, abs=0.03), "nothing beside it to be told alone"


def test_labels_without_vectors_are_hidden_as_ever() -> None:
    batch = code_batch(211)
    labels, _ = hidden_labels_and_vectors(batch, seed=3, label_share=0.3, vector_share=0.3)
    assert torch.equal(labels, hidden_labels(batch, seed=3, share=0.3))
