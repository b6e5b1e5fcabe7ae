from __future__ import annotations

import torch

from hvq.config_priors import TransformerPriorConfig
from hvq.priors import TransformerPrior, build_prior


def test_every_field_arrives() -> None:
    config = TransformerPriorConfig(width=30, layers=3, heads=5, dropout=0.25, context_blocks=1)
    prior = build_prior(config, codebook_size=7, coarser={"top": 11, "middle": 13}, num_classes=3)
    assert isinstance(prior, TransformerPrior)
    assert prior.codebook_size == 7
    assert prior.coarser == {"top": 11, "middle": 13}
    assert prior.embedding.weight.shape == (7, 30)
    assert len(prior.blocks) == 3
    assert {block.heads for block in prior.blocks} == {5}
    assert {module.p for module in prior.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    assert prior.condition.num_classes == 3
    assert {name: len(reader) for name, reader in prior.condition.readers.items()} == {"top": 1, "middle": 1}
