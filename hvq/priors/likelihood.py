"""What a prior is asked on stored codes, and how well it answers.

Letters: B batch, `*grid` the axes of a level, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
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
    """bool `[B]`, label drop-out: a function of (seed, epoch, row).

    One draw decides of label and vector: hidden for the same share, they are hidden together, which is what guidance
    asks for; of two shares, the samples of the smaller are among those of the larger.
    """
    draws = uniform(seed, "label dropout", batch.epochs.numpy(), batch.indices.numpy())
    return torch.from_numpy(draws < share)


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
