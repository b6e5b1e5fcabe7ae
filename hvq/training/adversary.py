"""The adversarial term of the reconstruction loss, and the discriminator that is trained beside the autoencoder.

The autoencoder is told of the discriminator by a gradient at its reconstruction, and the discriminator of the
autoencoder by pixels, so that each optimizer sees its own gradients and no others. Letters: B batch, C channels, H W
image.
"""

from __future__ import annotations

from contextlib import nullcontext
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from hvq.autoencoders import AutoencoderResult, weights_channels_last
from hvq.autoencoders.discriminator import PatchDiscriminator, hinge_loss
from hvq.config_losses import AdversarialConfig
from hvq.distributed import Reduction
from hvq.training.optimization import Optimization
from hvq.training.schedule import learning_rate
from hvq.training.seeds import seeded
from hvq.training.state import optimizer_tensors, restore_optimizer

_SMALLEST_NORM = 1e-12


class Adversary:
    """A discriminator in training, and the term by which the autoencoder learns to deceive it (arXiv 2012.09841).

    The term is -mean D(x'), times the weight of the configuration, times the adaptive weight of its equation (7): the
    norm of the gradient of the other reconstruction terms over that of this one, at the last weight of the decoder. It
    is measured over all micro-batches and processes of a step and holds in the next one, so that it is one number for
    the whole batch, however that is split.

    Before `warmup_steps` nothing of this happens; in the first step after them the discriminator learns alone.

    Args:
        config: of the term.
        optimization: of the autoencoder, beside which this is trained (`Optimization.accompany`).
        decoder: the autoencoder's.
        channels: C of the images.
        name: of the term, for the log.
        seed: of fresh weights.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        optimization: Optimization,
        *,
        decoder: nn.Module,
        channels: int,
        name: str,
        seed: int,
    ) -> None:
        accelerator = optimization.accelerator
        self.config, self.name = config, name
        self._training, self._accelerator = optimization.config, accelerator
        self._last_weight = [weight for weight in decoder.parameters() if weight.dim() > 1][-1]
        with seeded(seed, "discriminator"):
            network = PatchDiscriminator(channels=channels, width=config.width, layers=config.layers, norm=config.norm)
        self.discriminator = weights_channels_last(network).to(accelerator.device, self._last_weight.dtype)
        self.wrapped: nn.Module = accelerator.prepare(self.discriminator)
        # As with the autoencoder: autocast is opened where it is wanted.
        accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        # Not prepared: accelerate would have two optimizers step one loss scale.
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), betas=config.betas)
        self.adaptive_weight = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self._active = False
        self._pair: tuple[Tensor, Tensor] | None = None
        self._measured: list[Tensor] = []

    # --- the autoencoder's side ---

    def __call__(self, result: AutoencoderResult, images: Tensor, others: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted term, and what the log is told; its gradient reaches the reconstruction and what lies behind.

        Args:
            result: of the autoencoder, for one micro-batch.
            images: `[B, C, H, W]` in [-1, 1].
            others: the weighted sum of the other reconstruction terms, with its graph.
        """
        if not self._active:
            return torch.zeros_like(others), {}
        reconstruction = result.reconstruction
        restored = reconstruction.detach().to(others.dtype).requires_grad_()
        deceit = -self.discriminator(restored).to(others.dtype).mean()
        scaler = self._accelerator.scaler
        # With a loss scale, small gradients survive float16 as they do on the way to the optimizer.
        scale = 1.0 if scaler is None else scaler.get_scale()
        (at_image,) = torch.autograd.grad(deceit * scale, restored)
        self._measure(others * scale, reconstruction, at_image)
        self._pair = (images.to(others.dtype), restored.detach())
        weight = self.config.weight * self.adaptive_weight.to(others.dtype)
        # A number whose gradient at the reconstruction is the one found, and whose value is that of the term.
        pulled = (reconstruction.to(others.dtype) * (at_image / scale)).sum()
        term = weight * (pulled - pulled.detach() + deceit.detach())
        return term, {f"reconstruction.{self.name}": deceit.detach(), "adversarial_weight": weight}

    def _measure(self, others: Tensor, reconstruction: Tensor, at_image: Tensor) -> None:
        """Gradients of the two sides at the decoder's last weight, for one micro-batch."""
        (of_others,) = torch.autograd.grad(others, self._last_weight, retain_graph=True)
        (of_term,) = torch.autograd.grad(
            reconstruction, self._last_weight, at_image.to(reconstruction.dtype), retain_graph=True
        )
        self._measured.append(torch.stack([of_others, of_term]).double())

    # --- the discriminator's side, as `Optimization` calls it ---

    def begin_step(self, step: int) -> None:
        """Make ready for optimizer step number `step`, from 0."""
        self._active = step >= self.config.warmup_steps
        share = learning_rate(self._training, step) / self._training.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share
        self._forget()

    def backward(self, share: float, *, sends: bool) -> dict[str, Tensor]:
        """Gradients of the hinge loss on the micro-batch that the term was last told of.

        Args:
            share: of the micro-batch in the batch of this process.
            sends: whether gradients are summed over processes with this one, the last.

        Returns:
            The loss, for the log; nothing before `warmup_steps`.
        """
        if self._pair is None:
            return {}
        pair, self._pair = torch.cat(self._pair), None
        no_sync = nullcontext() if sends else self._accelerator.no_sync(self.wrapped)
        # Its gradients have no loss scale, without which they would vanish in float16.
        autocast = self._accelerator.autocast() if self._accelerator.scaler is None else nullcontext()
        with no_sync:
            with autocast:
                loss = hinge_loss(*self.wrapped(pair).chunk(2))
            (loss * share).backward()
        return {"discriminator": loss.detach()}

    def clip_gradient(self, largest: float) -> Tensor:
        """The norm of the gradient, before it is clipped at `largest`."""
        norm = torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), largest)
        # Without gradients, before `warmup_steps`, it would lie on the CPU.
        return norm.to(self._accelerator.device)

    def end_step(self, *, counts: bool, reduction: Reduction) -> None:
        """Let the discriminator learn, and set the adaptive weight of the next step, where this one counts.

        All processes call it, and all find the same weight.
        """
        if counts and self._measured:
            self.optimizer.step()
            gradients = reduction.sum(torch.stack(self._measured).mean(0))
            of_others, of_term = (float(gradient.norm()) for gradient in gradients)
            # At a loss scale they may overflow where the step itself does not; then the weight stays as it is.
            if isfinite(of_others) and isfinite(of_term):
                weight = min(of_others / max(of_term, _SMALLEST_NORM), self.config.largest_adaptive_weight)
                self.adaptive_weight.fill_(weight)
        self._forget()

    def _forget(self) -> None:
        self.optimizer.zero_grad()
        self._measured, self._pair = [], None

    # --- what a checkpoint keeps ---

    def kept_tensors(self, reduction: Reduction) -> dict[str, Tensor]:
        """Weights, moments and the adaptive weight, which are the same on all processes."""
        return {
            **{f"model/{name}": tensor for name, tensor in self.discriminator.state_dict().items()},
            **{f"optimizer/{name}": t for name, t in optimizer_tensors(self.discriminator, self.optimizer).items()},
            "adaptive_weight": self.adaptive_weight,
        }

    def take_back(self, tensors: dict[str, Tensor], reduction: Reduction) -> None:
        """Go on from what `kept_tensors` gave."""
        self.discriminator.load_state_dict(_below("model/", tensors))
        moments = _below("optimizer/", tensors)
        restore_optimizer(self.discriminator, self.optimizer, moments, Path(self.name), "discriminator")
        self.adaptive_weight.copy_(tensors["adaptive_weight"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
