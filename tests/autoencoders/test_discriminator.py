from __future__ import annotations

import numpy as np
import pytest
import torch

from hvq.autoencoders.discriminator import PatchDiscriminator, hinge_loss
from hvq.errors import ConfigurationError


@pytest.mark.parametrize("norm", ["group", "none"])
def test_a_logit_depends_on_its_image_alone(norm: str) -> None:
    network = PatchDiscriminator(channels=2, width=6, layers=2, norm=norm).double().train()
    images = torch.rand(5, 2, 17, 19, dtype=torch.float64) * 2 - 1
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert not list(network.buffers())


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_patch_sees_as_much_of_the_image_as_the_paper_says(layers: int, patch: int) -> None:
    network = PatchDiscriminator(channels=1, width=3, layers=layers, norm="none").double()
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1.0)
    images = torch.rand(1, 1, 101, 101, dtype=torch.float64, requires_grad=True)
    logits = network(images)
    middle = logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2]
    (gradient,) = torch.autograd.grad(middle, images)
    rows = (gradient[0, 0] != 0).any(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == patch


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_image_gives_one_patch(layers: int) -> None:
    network = PatchDiscriminator(channels=1, width=4, layers=layers)
    side = 3 * 2**layers
    assert network(torch.zeros(1, 1, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 1, side - 1, side - 1))


@pytest.mark.parametrize("width", [1, 7, 9, 17, 33, 64])
def test_any_width_has_its_groups(width: int) -> None:
    assert PatchDiscriminator(channels=1, width=width, layers=2)(torch.zeros(1, 1, 16, 16)).shape[:2] == (1, 1)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="group or none; received batch"):
        PatchDiscriminator(channels=1, norm="batch")  # type: ignore[arg-type]


def test_the_hinge_loss_is_that_of_the_definition() -> None:
    real, restored = torch.randn(3, 1, 5, 7) * 2, torch.randn(3, 1, 5, 7) * 2
    expected = (
        np.maximum(0, 1 - real.double().numpy()).mean() + np.maximum(0, 1 + restored.double().numpy()).mean()
    ) / 2
    assert hinge_loss(real, restored).item() == pytest.approx(expected, rel=1e-6)
    assert hinge_loss(real.bfloat16(), restored.bfloat16()).dtype == torch.float32
