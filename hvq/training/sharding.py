"""Priors whose parameters lie in shards over the processes (FSDP2), and tensors that do.

accelerate shards; here is what it is told of a prior, and what shards ask of whoever reads or writes parameters. All of
it is called by all processes together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, register_fsdp_forward_method
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor

from hvq.errors import ConfigurationError
from hvq.priors import Prior

# Sampling enters a prior and its units by these, beside `forward`.
_METHODS_OF_PRIORS = ("make_cache", "step")
_METHODS_OF_UNITS = ("make_state", "start_row", "step")


def is_sharding(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP."""
    return accelerator.distributed_type == DistributedType.FSDP


def plan_shards(model: nn.Module, accelerator: Accelerator) -> None:
    """Tell accelerate, before it prepares a model, which modules are sharded each on its own.

    Raises:
        ConfigurationError: where the model is not a prior, or the launcher asks for what is not supported.
    """
    if not isinstance(model, Prior):
        raise ConfigurationError(
            "FSDP shards priors, and the autoencoder is too small to gain by it; train it with DDP, as with "
            "--config_file recipes/accelerate/8-gpus.yaml, and the priors with recipes/accelerate/fsdp2.yaml"
        )
    plugin: FullyShardedDataParallelPlugin = accelerator.state.fsdp_plugin
    _refuse_unsupported(plugin)
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(module).__name__ for module in model.units})
    # Weights travel in float32 and autocast rounds them, as on one GPU: so looks at held-out data, which open no
    # autocast, see the weights that will be saved, and gradients are summed in float32.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    # Fresh weights are a function of the seed on every process, so there is nothing to send.
    plugin.cpu_ram_efficient_loading = False
    # FSDP takes rows of contiguous parameters; those of convolutions lie channels last.
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()


def _refuse_unsupported(plugin: FullyShardedDataParallelPlugin) -> None:
    if plugin.fsdp_version != 2:
        raise ConfigurationError(
            f"FSDP must be of version 2; received {plugin.fsdp_version}: set fsdp_version: 2 in accelerate's "
            "configuration, or FSDP_VERSION=2"
        )
    if plugin.activation_checkpointing:
        raise ConfigurationError(
            "accelerate's configuration asks for fsdp_activation_checkpointing; set priors.<level>.model.recompute to "
            "true instead, which does the same without FSDP too"
        )
    if type(plugin.cpu_offload) is not OffloadPolicy:
        raise ConfigurationError(
            "accelerate's configuration asks for fsdp_offload_params, which is not supported; set it to false, and "
            "take more processes, or priors.<level>.model.recompute"
        )


def register_methods(model: nn.Module) -> None:
    """Let sampling gather what is sharded as `forward` does, after accelerate has prepared the model."""
    if not isinstance(model, FSDPModule) or not isinstance(model, Prior):
        return
    # True of the logits, to which nobody writes.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    for module, names in [(model, _METHODS_OF_PRIORS), *((unit, _METHODS_OF_UNITS) for unit in model.units)]:
        for name in names:
            if hasattr(module, name):
                register_fsdp_forward_method(module, name)


def reshard(model: nn.Module) -> None:
    """Let go of parameters that a forward has gathered, before shards are read or written.

    A module keeps what it gathered until a backward pass has gone through it, and would compute with that whatever is
    written into the shards.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor without shards, gathered where it lies in some."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_shard(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a whole tensor, cut as `like` is; the tensor itself where that lies whole.

    Every process has the tensor already, so that nothing is sent.
    """
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def as_shards(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`as_shard` of tensors by name; names that `like` does not have are left as they are."""
    return {name: as_shard(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}


def gather(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Copies on the CPU of whole tensors by name, gathered one by one: no GPU holds more than one of them whole.

    Args:
        tensors: of the same names on all processes.
        keep: whether this process wants them; the others get none.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            gathered[name] = full.detach().to("cpu", copy=True).contiguous()
    return gathered


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, the same number on all processes."""
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
