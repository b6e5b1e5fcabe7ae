"""One optimizer step, with the codebooks' beside it: the part that all training loops share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from accelerate.utils.modeling import get_grad_scaler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hvq.config import OptimizationConfig
from hvq.distributed import Reduction, current_reduction
from hvq.errors import ConfigurationError, HVQError
from hvq.precision import tf32
from hvq.priors import Prior
from hvq.quantizers import CodebookStep, Quantizer
from hvq.randomness import hash_words
from hvq.training.averages import WeightAverage
from hvq.training.schedule import learning_rate
from hvq.training.sharding import is_sharding, plan_shards, register_methods, total_norm

BatchType = TypeVar("BatchType")
Losses = tuple[Tensor, dict[str, Tensor]]


class NotFiniteError(HVQError):
    """Losses or gradients that were not finite in too many steps in a row."""


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    Attributes:
        terms: the losses, means over micro-batches and processes.
        gradient_norm: before clipping.
        skipped: whether the step was left out, for a gradient that was not finite.
        revived: codes that were revived, by level name.
        stop_requested: whether any process has been asked to stop; the same answer on all.
    """

    terms: dict[str, float]
    gradient_norm: float
    skipped: bool
    revived: dict[str, Tensor]
    stop_requested: bool = False


class Companion(Protocol):
    """A model that is trained beside another, in the same steps, by an optimizer of its own."""

    def begin_step(self, step: int) -> None:
        """Make ready for optimizer step number `step`, from 0."""
        ...

    def backward(self, share: float, *, sends: bool) -> dict[str, Tensor]:
        """Gradients for the micro-batch whose losses were just computed; returns terms for the log.

        Args:
            share: of the micro-batch in the batch of this process.
            sends: whether gradients are summed over processes with this one, the last.
        """
        ...

    def clip_gradient(self, largest: float) -> Tensor:
        """The norm of the gradient, before it is clipped at `largest`."""
        ...

    def end_step(self, *, counts: bool, reduction: Reduction) -> None:
        """Take the step where it counts, and forget it where not; all processes call it."""
        ...


class Optimization:
    """A model in training: optimizer, averaged weights, codebooks, and the processes that share the work.

    Args:
        model: not wrapped; it is moved to the accelerator's device, and `wrapped` is what to call in training.
        config: how long and how fast.
        accelerator: of the run; it prepares model and optimizer alone, since loader and learning rate are functions of
            the step here.
        seed: of drop-out.
        quantizers: by level name, where the model has codebooks.

    Set `stop_requested` to have the next step's report say, on all processes alike, that this one was asked to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizationConfig,
        accelerator: Accelerator,
        *,
        seed: int,
        quantizers: dict[str, Quantizer] | None = None,
    ) -> None:
        # What is sharded moves shard by shard, so that no GPU ever holds the whole.
        self.model = model if is_sharding(accelerator) else model.to(accelerator.device)
        self.config = config
        self.accelerator = accelerator
        self.seed = seed
        self.step_number = 0
        self.reduction: Reduction = current_reduction()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas
        )
        _refuse_what_would_be_ignored(accelerator)
        renew_loss_scale(accelerator)
        if is_sharding(accelerator):
            plan_shards(model, accelerator)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        register_methods(model)
        # Of the parameters as they lie now, which is in shards where they are sharded.
        self.average = WeightAverage(model, decay=config.average_decay)
        # accelerate has put autocast into the model's own forward, where looks at held-out data would run in it too;
        # `step` opens it for training alone.
        accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if config.compile:
            self.wrapped = compiled(self.wrapped)
        self.codebooks = CodebookStep(quantizers or {}, self.optimizer)
        self.companion: Companion | None = None
        self.stop_requested = False
        self.skipped_in_a_row = 0

    def accompany(self, companion: Companion) -> None:
        """Train another model beside this one; a step that does not count is skipped for both."""
        self.companion = companion

    def step(self, micro_batches: Sequence[BatchType], losses: Callable[[BatchType], Losses]) -> StepReport:
        """One optimizer step over the micro-batches of this process.

        Args:
            micro_batches: of equal size.
            losses: the total and its terms for one micro-batch, by calling `wrapped`.

        Raises:
            NotFiniteError: where the gradient was not finite `skipped_steps` times in a row.
        """
        self._prepare_step()
        reports, sharded = [], is_sharding(self.accelerator)
        for i, batch in enumerate(micro_batches):
            is_last = i == len(micro_batches) - 1
            # Gradients cross the network once, with the last micro-batch; but to shards every time, since until then
            # each process would hold whole ones.
            sending = nullcontext() if is_last or sharded else self.accelerator.no_sync(self.wrapped)
            with sending, tf32(self.config.tf32):
                with self.accelerator.autocast():
                    total, terms = losses(batch)
                self.accelerator.backward(total / len(micro_batches))
            if self.companion is not None:
                with tf32(self.config.tf32):
                    terms = {**terms, **self.companion.backward(1 / len(micro_batches), sends=is_last)}
            reports.append({"loss": total.detach(), **terms})
        self.accelerator.unscale_gradients(self.optimizer)
        parameters = list(self.model.parameters())
        norm = total_norm(parameters)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
        beside = [] if self.companion is None else [self.companion.clip_gradient(self.config.gradient_clip)]
        agreed, counts, stop = self._agree(reports, [norm, *beside])
        revived = self._finish_step(counts)
        return StepReport(agreed, float(norm), skipped=not counts, revived=revived, stop_requested=stop)

    def _prepare_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step_number)
        # Drop-out is a function of (seed, step, process), so that resuming needs no generator's state.
        torch.manual_seed(int(hash_words(self.seed, "step", self.step_number, self.reduction.rank) >> 1))
        self.optimizer.zero_grad()
        if self.companion is not None:
            self.companion.begin_step(self.step_number)

    def _agree(self, reports: list[dict[str, Tensor]], norms: list[Tensor]) -> tuple[dict[str, float], bool, bool]:
        """Mean losses over all processes, whether the step counts, and whether to stop: one sum, one decision."""
        names = list(reports[0])
        means = [torch.stack([report[name].double() for report in reports]).mean() for name in names]
        faults = (~torch.isfinite(torch.stack([*(norm.double() for norm in norms), *means]))).any().double()
        stops = torch.full_like(faults, float(self.stop_requested))
        fault_sum, stop_sum, *sums = self.reduction.sum(torch.stack([faults, stops, *means])).tolist()
        terms = dict(zip(names, (value / self.reduction.size for value in sums), strict=True))
        return terms, fault_sum == 0, stop_sum > 0

    def _finish_step(self, counts: bool) -> dict[str, Tensor]:
        revived: dict[str, Tensor] = {}
        if not counts:
            self.codebooks.discard()
            self.optimizer.zero_grad()
        if counts or self.accelerator.scaler is not None:
            # Without gradients the weights stay; with a loss scale, the scaler lowers it where gradients overflowed.
            self.optimizer.step()
        if counts:
            revived = self.codebooks.step(self.reduction)
            self.average.update(self.step_number)
        if self.companion is not None:
            self.companion.end_step(counts=counts, reduction=self.reduction)
        self.skipped_in_a_row = 0 if counts else self.skipped_in_a_row + 1
        self.step_number += 1
        if self.skipped_in_a_row >= self.config.skipped_steps:
            raise NotFiniteError(
                f"the loss or its gradient was not finite {self.skipped_in_a_row} steps in a row, up to step "
                f"{self.step_number}; lower learning_rate, or look at the data"
            )
        return revived


def compiled(model: nn.Module) -> nn.Module:
    """A prepared model as it is called in training; looks, files and names of parameters are those of the model itself.

    What is sharded is compiled unit by unit, between the collectives.
    """
    if not isinstance(model, FSDPModule):
        return torch.compile(model)  # type: ignore[return-value]  # a module of a kind that torch types as a function
    assert isinstance(model, Prior)
    for unit in model.units:
        unit.forward = torch.compile(unit.forward)
    return model


def _refuse_what_would_be_ignored(accelerator: Accelerator) -> None:
    processes = current_reduction().size
    if processes != accelerator.num_processes:
        raise ConfigurationError(
            f"{processes} processes run, and accelerate knows of {accelerator.num_processes}; where there is no GPU, "
            "set ACCELERATE_USE_CPU=true, or leave the making of the accelerator to hvq"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigurationError(
            "mixed_precision fp16 takes a GPU, and training is on a CPU, where it would run in float32; set "
            "mixed_precision to bf16 or no"
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise ConfigurationError(
            "accelerate's configuration asks for torch.compile (dynamo_backend); leave it out, and set compile: true "
            "in autoencoder_training or in priors.<level>.training instead"
        )


def renew_loss_scale(accelerator: Accelerator) -> None:
    """Begin a stage with the loss scale that it would have alone, not with what the stage before has come to."""
    if accelerator.scaler is not None:
        handler = accelerator.scaler_handler
        settings = {} if handler is None else handler.to_kwargs()
        if is_sharding(accelerator):
            # The one that accelerate takes for version 2; `get_grad_scaler` knows version 1.
            accelerator.scaler = torch.amp.GradScaler(accelerator.device.type, **settings)
        else:
            accelerator.scaler = get_grad_scaler(accelerator.distributed_type, **settings)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights of two and more dimensions decay; biases, norms, quantizers and absent vectors do not."""
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    spared = {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.dim() > 1 and id(parameter) not in spared else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
