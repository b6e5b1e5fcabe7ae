"""The discriminator in training beside the autoencoder: whose gradients are whose, in parts, on two processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from hvq.autoencoders import AutoencoderLoss, AutoencoderResult
from hvq.autoencoders.discriminator import hinge_loss
from hvq.config import OptimizationConfig
from hvq.config_losses import AdversarialConfig
from hvq.distributed import Reduction, current_reduction
from hvq.training.adversary import Adversary
from hvq.training.optimization import Losses, Optimization
from tests.autoencoders.small import small_model
from tests.processes import run_in_processes
from tests.runs import differing

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

TERM: dict[str, Any] = {"width": 5, "layers": 1, "warmup_steps": 0, "weight": 0.7}


class Training:
    """A small autoencoder and its adversary, in float64 so that sums in another order are the same."""

    def __init__(
        self, *, dtype: torch.dtype = torch.float64, precision: str = "no", recompute: bool = False, **term: Any
    ) -> None:
        torch.manual_seed(7)
        self.model = small_model((2, 2), quantizer={"revival_threshold": 0.0}).to(dtype).train()
        self.model.recompute = recompute
        accelerator = Accelerator(mixed_precision=precision)
        config = OptimizationConfig(steps=50, warmup_steps=0)
        self.optimization = Optimization(self.model, config, accelerator, seed=5, quantizers=self.model.quantizers)
        term_config = AdversarialConfig.model_validate({**TERM, **term})
        self.adversary = Adversary(
            term_config, self.optimization, decoder=self.model.decoder, channels=2, name="critic", seed=3
        )
        self.optimization.accompany(self.adversary)
        self.loss = AutoencoderLoss(adversary=self.adversary)

    def losses(self, images: Tensor) -> Losses:
        result = self.optimization.wrapped(images)
        self.optimization.codebooks.add(result.levels)
        return self.loss(result, images)

    def step(self, images: Tensor, micro_batches: int = 1) -> dict[str, float]:
        """One step on this process's share of the images."""
        reduction = current_reduction()
        mine = images.chunk(reduction.size)[reduction.rank]
        return self.optimization.step(mine.chunk(micro_batches), self.losses).terms

    def state(self) -> dict[str, Tensor]:
        """All that training has changed."""
        model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return model | {name: tensor.clone() for name, tensor in self.adversary.kept_tensors(Reduction()).items()}


def batches(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.rand(12, 2, 8, 12, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(number)]


def _agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-8, msg=name)


# --- whose gradients are whose ---


def test_each_optimizer_sees_its_own_gradients_alone() -> None:
    training = Training()
    images, more = batches(2)
    training.step(images)
    assert float(training.adversary.adaptive_weight) > 0
    training.optimization._prepare_step()
    discriminator = list(training.adversary.discriminator.parameters())
    total, _ = training.losses(more)
    total.backward()
    assert all(parameter.grad is None for parameter in discriminator)
    of_model = {name: parameter.grad.clone() for name, parameter in training.model.named_parameters()}  # type: ignore[union-attr]
    training.adversary.backward(1.0, sends=True)
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in discriminator)
    assert all(torch.equal(p.grad, of_model[name]) for name, p in training.model.named_parameters())  # type: ignore[arg-type]
    held = {id(p) for group in training.optimization.optimizer.param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in training.model.parameters()}
    own = {id(p) for group in training.adversary.optimizer.param_groups for p in group["params"]}
    assert own == {id(parameter) for parameter in discriminator}


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_the_plain_sum_of_both_terms(recompute: bool) -> None:
    """The detour over the gradient at the image ends in the gradient that going through the discriminator gives."""
    training, (images, more) = Training(recompute=recompute), batches(2)
    training.step(images)
    adaptive = float(training.adversary.adaptive_weight)
    training.optimization._prepare_step()
    total, told = training.losses(more)
    parameters = list(training.model.parameters())
    found = torch.autograd.grad(total, parameters)
    result = training.model(more)
    plain, _ = AutoencoderLoss()(result, more)
    deceit = -training.adversary.discriminator(result.reconstruction).mean()
    expected = torch.autograd.grad(plain + 0.7 * adaptive * deceit, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert torch.allclose(total, plain + 0.7 * adaptive * deceit)
    assert torch.allclose(told["reconstruction.critic"], deceit)
    assert float(told["adversarial_weight"]) == pytest.approx(0.7 * adaptive)
    assert torch.allclose(told["reconstruction"], (result.reconstruction - more).square().mean())


def test_the_adaptive_weight_makes_both_gradients_equally_large_at_the_last_weight() -> None:
    training, (images,) = Training(), batches(1)
    before = training.model(images)
    last = training.model.decoder[-1].weight
    discriminator = training.adversary.discriminator
    norms = [
        torch.autograd.grad(term, last, retain_graph=True)[0].norm()
        for term in ((before.reconstruction - images).square().mean(), discriminator(before.reconstruction).mean())
    ]
    terms = training.step(images)
    assert terms["adversarial_weight"] == 0
    assert float(training.adversary.adaptive_weight) == pytest.approx(float(norms[0] / norms[1]), rel=1e-9)
    assert training.step(images)["adversarial_weight"] == pytest.approx(0.7 * float(norms[0] / norms[1]), rel=1e-9)


def test_the_adaptive_weight_has_a_limit() -> None:
    training, (images,) = Training(largest_adaptive_weight=1e-3), batches(1)
    training.step(images)
    assert float(training.adversary.adaptive_weight) == 1e-3


# --- a step ---


def test_the_discriminator_learns_by_the_hinge_loss_with_a_clipped_gradient() -> None:
    training, (images,) = Training(), batches(1)
    adversary = training.adversary
    weights = {name: parameter.detach().clone() for name, parameter in adversary.discriminator.named_parameters()}
    with torch.no_grad():
        restored = training.model(images).reconstruction
    pair = [adversary.discriminator(part) for part in (images, restored)]
    expected = torch.autograd.grad(hinge_loss(*pair), list(adversary.discriminator.parameters()))
    told = training.step(images)["discriminator"]
    assert told == pytest.approx(hinge_loss(*pair).item(), rel=1e-9)
    norm = float(torch.cat([gradient.flatten() for gradient in expected]).norm())
    for (name, parameter), gradient in zip(adversary.discriminator.named_parameters(), expected, strict=True):
        clipped = gradient * min(1.0, 1.0 / (norm + 1e-6))
        moment = adversary.optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(moment, 0.5 * clipped, rtol=1e-9, atol=1e-15)
        assert not torch.equal(parameter, weights[name])


def test_before_the_warm_up_ends_training_is_that_without_an_adversary() -> None:
    waiting, plain = Training(warmup_steps=3), Training(warmup_steps=3)
    plain.optimization.companion, plain.loss = None, AutoencoderLoss()
    before = {name: tensor.clone() for name, tensor in waiting.adversary.discriminator.state_dict().items()}
    for images in batches(3):
        terms = waiting.step(images)
        plain.step(images)
        assert "discriminator" not in terms
    assert differing(waiting.model.state_dict(), plain.model.state_dict()) == []
    assert differing(waiting.adversary.discriminator.state_dict(), before) == []
    assert "discriminator" in waiting.step(batches(1)[0])


@pytest.mark.parametrize("culprit", ["autoencoder", "discriminator"])
def test_a_step_that_is_not_finite_is_skipped_for_both(culprit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training, (images, more, last) = Training(), batches(3)
    training.step(images)
    before = training.state()
    if culprit == "autoencoder":
        more = more.clone()
        more[3, 1, 5, 7] = torch.nan
        assert training.optimization.step([more], training.losses).skipped
    else:
        with monkeypatch.context() as patch:
            patch.setattr(training.adversary, "clip_gradient", lambda _: torch.tensor(torch.inf))
            assert training.optimization.step([more], training.losses).skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.state().items())
    assert not training.optimization.step([last], training.losses).skipped
    assert not all(torch.equal(tensor, before[name]) for name, tensor in training.state().items())


def test_the_discriminator_follows_the_course_of_the_learning_rate() -> None:
    training = Training(learning_rate=0.02)
    rates = []
    for step in (0, 25, 49):
        training.adversary.begin_step(step)
        rates.append(training.adversary.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.02, 0.02 * 0.525, 0.02 * 0.05], rel=0.03)


def test_in_bfloat16_it_learns_too() -> None:
    training, (images, more) = Training(dtype=torch.float32, precision="bf16"), batches(2)
    for part in (images, more):
        terms = training.step(part.float())
    assert terms["adversarial_weight"] > 0
    assert {parameter.dtype for parameter in training.adversary.discriminator.parameters()} == {torch.float32}


def test_a_loss_scale_changes_nothing_but_what_survives_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients at the image are taken at that scale, and go back without it; the ratio of two of them has none."""
    training, (images, more) = Training(), batches(2)
    training.step(images)
    found = []
    for scale in (None, 4096.0):
        scaler = None if scale is None else SimpleNamespace(get_scale=lambda scale=scale: scale)
        with monkeypatch.context() as patch:
            patch.setattr(training.optimization.accelerator, "scaler", scaler)
            training.adversary.begin_step(1)
            total, _ = training.losses(more)
            measured = training.adversary._measured[-1]
        found.append((torch.autograd.grad(total, list(training.model.parameters())), measured))
    (plain, measured), (scaled, measured_at_scale) = found
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(measured_at_scale, measured * 4096)


def test_the_adaptive_weight_stays_where_only_its_own_measure_overflows() -> None:
    training, (images, more) = Training(), batches(2)
    training.step(images)
    before = float(training.adversary.adaptive_weight)
    training.optimization._prepare_step()
    training.losses(more)
    training.adversary._measured[0][1] = torch.inf
    training.adversary.end_step(counts=True, reduction=Reduction())
    assert float(training.adversary.adaptive_weight) == before


# --- in parts, on two processes ---


def _after(steps: int, micro_batches: int) -> dict[str, Tensor]:
    training = Training()
    for images in batches(steps):
        training.step(images, micro_batches)
    return training.state()


def test_micro_batches_are_one_batch() -> None:
    expected = _after(3, 1)
    assert float(expected["adaptive_weight"]) > 0
    _agree(_after(3, 4), expected)


@pytest.mark.processes
def test_two_processes_are_one_on_the_joined_batch() -> None:
    expected = _after(3, 1)
    first, second = run_in_processes(_after, 2, 3, 2)
    _agree(first, expected)
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_what_a_checkpoint_keeps_is_all_of_it() -> None:
    straight, resumed = Training(), Training()
    for images in batches(3):
        straight.step(images)
    for images in batches(2):
        resumed.step(images)
    kept = {name: tensor.clone() for name, tensor in resumed.adversary.kept_tensors(Reduction()).items()}
    fresh = Training()
    fresh.model.load_state_dict(resumed.model.state_dict())
    fresh.optimization.optimizer.load_state_dict(resumed.optimization.optimizer.state_dict())
    fresh.optimization.step_number = 2
    fresh.adversary.take_back(kept, Reduction())
    fresh.step(batches(3)[2])
    assert all(torch.equal(fresh.state()[name], tensor) for name, tensor in straight.state().items())


def test_the_term_wants_no_graph_of_what_it_is_not_told() -> None:
    """Before the warm-up ends it costs nothing: no pass, no gradient."""
    training = Training(warmup_steps=1)
    training.optimization._prepare_step()
    images = batches(1)[0]
    result = AutoencoderResult(images, {})
    term, told = training.adversary(result, images, images.mean())
    assert (float(term), told) == (0.0, {})
