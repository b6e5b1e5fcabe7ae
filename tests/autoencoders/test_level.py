from __future__ import annotations

import torch
from torch import nn

from hvq.autoencoders import Level
from hvq.quantizers import VectorQuantizer


def level(*, merge: nn.Module | None = None, learn_absent: bool = False) -> Level:
    return Level(
        name="top",
        ratio=2,
        encoder=nn.AvgPool2d(2),
        projection=nn.Identity(),
        quantizer=VectorQuantizer(codebook_size=7, code_dimension=3),
        merge=merge,
        learn_absent=learn_absent,
    )


def test_context_comes_before_features_and_vectors() -> None:
    context, features = torch.randn(2, 5, 3, 7), torch.randn(2, 3, 3, 7)
    joined = torch.cat([context, features], dim=1)
    assert torch.equal(level().latents(features, context), joined)
    assert torch.equal(level().latents(features, None), features)
    assert torch.equal(level().decode(features, context), joined)


def test_the_merge_makes_the_context_of_the_next_level() -> None:
    vectors = torch.randn(2, 3, 3, 7)
    assert level(merge=nn.Upsample(scale_factor=2)).decode(vectors, None).shape == (2, 3, 6, 14)


def test_the_stand_in_is_learned_or_the_mean_of_the_codebook() -> None:
    assert torch.equal(level().absent_vector(), level().quantizer.mean_vector()) is False, "codebooks differ"
    plain = level()
    assert torch.equal(plain.absent_vector(), plain.quantizer.mean_vector())
    assert plain.absent is None
    learned = level(learn_absent=True)
    assert learned.absent_vector() is learned.absent


def test_only_samples_that_lack_the_level_are_replaced() -> None:
    learned = level(learn_absent=True)
    with torch.no_grad():
        learned.absent_vector().copy_(torch.tensor([5.0, 7.0, 11.0]))
    vectors = torch.randn(3, 3, 2, 5)
    masked = learned.mask_absent(vectors, torch.tensor([True, False, True]))
    assert torch.equal(masked[[0, 2]], vectors[[0, 2]])
    assert torch.equal(masked[1], torch.tensor([5.0, 7.0, 11.0]).view(3, 1, 1).expand(3, 2, 5))
