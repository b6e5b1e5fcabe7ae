"""What a prior is asked on stored codes, and how well it answers.

Letters: B batch, `*grid` the axes of a level, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hvq.chunks import padded_rows
from hvq.data import CodeBatch
from hvq.distributed import Reduction
from hvq.priors.base import Prior
from hvq.priors.condition import Condition
from hvq.priors.guidance import vector_size
from hvq.randomness import uniform


def prior_inputs(
    batch: CodeBatch,
    level: str,
    *,
    level_names: Sequence[str],
    device: torch.device,
    hidden_labels: Tensor | None = None,
    hidden_vectors: Tensor | None = None,
) -> tuple[Tensor, Condition]:
    """The codes `[B, *grid]` that a level's prior predicts, and what it is told: coarser codes, class and vector.

    Args:
        batch: codes of all levels.
        level: whose prior.
        level_names: of the hierarchy, coarse to fine.
        device: where the tensors go.
        hidden_labels: bool `[B]`, samples whose class is not told.
        hidden_vectors: bool `[B]`, samples whose vector is not told, where there are vectors.
    """
    coarser = level_names[: level_names.index(level)]
    labels = batch.labels if hidden_labels is None else batch.labels.masked_fill(hidden_labels, -1)
    vectors = batch.vectors
    if vectors is not None and hidden_vectors is not None:
        vectors = vectors.masked_fill(hidden_vectors.unsqueeze(1), torch.nan)
    condition = Condition(
        codes={name: batch.codes[name].to(device) for name in coarser},
        labels=labels.to(device),
        vector=None if vectors is None else vectors.to(device),
    )
    return batch.codes[level].to(device), condition


def hidden_labels(batch: CodeBatch, *, seed: int, share: float) -> Tensor:
    """bool `[B]`, label drop-out: a function of (seed, epoch, row)."""
    return torch.from_numpy(_draws(batch, "label dropout", seed) < share)


def hidden_labels_and_vectors(
    batch: CodeBatch, *, seed: int, label_share: float, vector_share: float
) -> tuple[Tensor, Tensor]:
    """bool `[B]` twice, drop-out of labels and of vectors: a function of (seed, epoch, row), and of what is there.

    A prior must have met whatever it may be told: both, none (which guidance compares with), the class alone, the
    vector alone. One draw hides both for the smaller share, and one of them alone for the difference. Of the other
    samples, where these have both, a second draw hides the label alone for half of the smaller share, and the vector
    alone for as much. Where there is but one of the two, it is hidden for its share.

    Args:
        batch: with labels, -1 where unknown, and vectors or none.
        seed: of the run.
        label_share: from 0 to below 1.
        vector_share: from 0 to below 1.
    """
    labels = hidden_labels(batch, seed=seed, share=label_share)
    vectors = hidden_labels(batch, seed=seed, share=vector_share)
    if batch.vectors is None:
        return labels, vectors
    draws, smaller = torch.from_numpy(_draws(batch, "one alone", seed)), min(label_share, vector_share)
    have_both = ~(labels | vectors) & (batch.labels >= 0)
    label_alone = have_both & (draws < smaller / 2)
    vector_alone = have_both & (draws > 1 - smaller / 2)
    return labels | label_alone, vectors | vector_alone


def _draws(batch: CodeBatch, purpose: str, seed: int) -> NDArray[np.float64]:
    return uniform(seed, purpose, batch.epochs.numpy(), batch.indices.numpy())


@torch.no_grad()
def nats_per_code(
    prior: Prior,
    batches: Iterable[CodeBatch],
    level: str,
    *,
    level_names: Sequence[str],
    chunk_size: int,
    reduction: Reduction | None = None,
) -> float:
    """Mean negative log-likelihood in nats per code, the same for any number of processes.

    Args:
        prior: of the level; its mode is left as it was.
        batches: the share of this process, at most `chunk_size` rows each; those without rows are forwards all the
            same. Vectors are told to a prior that is conditioned on any.
        level: whose codes.
        level_names: of the hierarchy, coarse to fine.
        chunk_size: rows of each forward; short batches are filled up.
        reduction: over the processes that share the codes.
    """
    was_training = prior.training
    prior.eval()
    device, takes_vectors = next(prior.parameters()).device, vector_size(prior) > 0
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        filled = _filled(batch, chunk_size, with_vectors=takes_vectors)
        targets, condition = prior_inputs(filled, level, level_names=level_names, device=device)
        logits = prior(targets, condition)[: len(batch)].double()
        targets = targets[: len(batch)]
        total[0] += functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")
        total[1] += targets.numel()
    prior.train(was_training)
    nats, count = (reduction or Reduction()).sum(total).tolist()
    return nats / max(1.0, count)


def _filled(batch: CodeBatch, length: int, *, with_vectors: bool) -> CodeBatch:
    vectors = batch.vectors if with_vectors else None
    return CodeBatch(
        codes={name: padded_rows(codes, length) for name, codes in batch.codes.items()},
        labels=padded_rows(batch.labels, length),
        indices=padded_rows(batch.indices, length),
        epochs=padded_rows(batch.epochs, length),
        vectors=None if vectors is None else padded_rows(vectors, length),
    )
