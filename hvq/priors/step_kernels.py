"""What `step_kernels.c` computes, called on tensors; plain PyTorch takes its place where it cannot be used.

Letters: M rows, E outputs, C inputs, B batch, A heads, T positions, d channels of a head.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hvq.compilation import load_compiled

SOURCE = Path(__file__).with_name("step_kernels.c")
_VARIABLE = "HVQ_STEP_BACKEND"
_POINTER, _SIZE, _REAL, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
# As the C functions have them, groups of arguments a line.
_PRODUCT = (
    *(_POINTER, *(_SIZE,) * 10),  # the input: where it lies, and what is done to it
    *(_POINTER, _SIZE, _POINTER, _SIZE, _REAL),  # scale, shift, epsilon
    *(_POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE),  # weights, bias, gate, addend
    *(_POINTER, _SIZE, _INT),  # the output, and threads
)
_ATTEND = (
    *(_POINTER, _SIZE) * 3,  # query, key, value
    *(_SIZE,) * 4,  # batch, heads, key heads, width
    *(_POINTER, _POINTER, _REAL, _POINTER, _POINTER),  # scales, epsilon, cosine, sine
    *(_POINTER, _POINTER, _SIZE, _SIZE, _SIZE),  # the cache: keys, values, length, slot, seen
    *(_POINTER, _SIZE, _INT),  # the output, and threads
)


def is_native(tensor: Tensor) -> bool:
    """Whether the compiled kernels take a tensor of this type and device; HVQ_STEP_BACKEND=torch turns them off."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and os.environ.get(_VARIABLE) != "torch"
        and library() is not None
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where this machine cannot have them."""
    loaded = load_compiled(SOURCE)
    return None if loaded is None else with_types(loaded)


def with_types(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The same library, knowing what its functions take."""
    loaded.hvq_product.argtypes = _PRODUCT
    loaded.hvq_attend.argtypes = _ATTEND
    loaded.hvq_panel.restype = _SIZE
    loaded.hvq_large_pages.argtypes = (_POINTER, _SIZE)
    loaded.hvq_large_pages.restype = None
    return loaded


def _require_memory(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a step of sampling; draw fewer samples at a time")


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor begins."""
    return None if tensor is None else tensor.data_ptr()


def _require_plain(*tensors: Tensor | None) -> None:
    """C reads float32 in memory of the CPU, rows that lie apart or not, and would read anything else as if it were."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.stride(-1) != 1:
            raise ValueError(
                f"steps were made for float32 on the CPU, channels last; received {tensor.dtype} on {tensor.device}, "
                f"strides {list(tensor.stride())}: make a new cache where the model is, outside of autocast"
            )


def lay_out(loaded: ctypes.CDLL, weight: Tensor) -> Tensor:
    """Weights `[E, C]` as panels `[ceil(E / P), C, P]`, in the order in which they are read."""
    panel = loaded.hvq_panel()
    outputs, inputs = weight.shape
    panels = -(-outputs // panel)
    padded = torch.nn.functional.pad(weight, (0, 0, 0, panels * panel - outputs))
    return empty(loaded, (panels, inputs, panel)).copy_(padded.view(panels, panel, inputs).transpose(1, 2))


def empty(loaded: ctypes.CDLL, shape: Sequence[int]) -> Tensor:
    """Memory that steps walk through, in large pages where there are any."""
    tensor = torch.empty(*shape, dtype=torch.float32, device="cpu")
    loaded.hvq_large_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def product(
    loaded: ctypes.CDLL,
    numbers: Tensor,
    place: Sequence[int],
    rows: int,
    panels: Tensor,
    outputs: int,
    *,
    change: int = 0,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    epsilon: float = 0.0,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """`[M, E]`, add + gate · (weights · changed inputs + bias).

    Args:
        loaded: the library.
        numbers: the tensor that holds the inputs.
        place: where in it: offset of the first, positions per sample, strides of samples and positions, segments,
            slots, first slot, stride of slots, length of a segment.
        rows: M.
        panels: of `lay_out`.
        outputs: E.
        change: 0 as they are, 1 ELU, 2 normalised, 3 SiLU of the first half times the second.
        scale: of normalised inputs, `[C]` or `[B, C]`.
        shift: the same.
        epsilon: of the norm.
        bias: `[E]`.
        gate: `[M, E]`, a row for each sample.
        add: `[M, E]`, of rows that lie apart or not.

    Raises:
        ValueError: where a tensor is not float32 on the CPU.
    """
    _require_plain(numbers, scale, shift, gate, add)
    offset, *where = place
    out = torch.empty(rows, outputs, dtype=torch.float32, device="cpu")
    failed = loaded.hvq_product(
        numbers.data_ptr() + 4 * offset,
        rows,
        *where,
        change,
        address(scale),
        scale.stride(0) if scale is not None and scale.dim() > 1 else 0,
        address(shift),
        shift.stride(0) if shift is not None and shift.dim() > 1 else 0,
        epsilon,
        panels.data_ptr(),
        outputs,
        address(bias),
        address(gate),
        0 if gate is None else gate.stride(0),
        address(add),
        0 if add is None else add.stride(0),
        out.data_ptr(),
        outputs,
        torch.get_num_threads(),
    )
    _require_memory(failed)
    return out


def attend(
    loaded: ctypes.CDLL,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    keys: Tensor,
    values: Tensor,
    slot: int,
    seen: int,
    scales: tuple[Tensor, Tensor] | None = None,
    epsilon: float = 0.0,
    turns: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`[B, A·d]`; the key and value of this position are written into the cache.

    Args:
        loaded: the library.
        query: `[B, A·d]`, of rows that lie apart or not; `key` and `value` `[B, key heads · d]` likewise.
        key: of this position.
        value: of this position.
        heads: A.
        keys: of the cache, `[B, key heads, T, d]`.
        values: the same.
        slot: where key and value go.
        seen: slots that are attended to, from the first on.
        scales: of normalised queries and keys, `[d]` each.
        epsilon: of the norm.
        turns: cosines and sines of this position, `[d / 2]` each.

    Raises:
        ValueError: where a tensor is not float32 on the CPU.
    """
    _require_plain(query, key, value, *(scales or ()), *(turns or ()))
    batch, key_heads, length, width = values.shape
    out = torch.empty(batch, heads * width, dtype=torch.float32, device="cpu")
    query_scale, key_scale = scales or (None, None)
    cosine, sine = turns or (None, None)
    failed = loaded.hvq_attend(
        *(query.data_ptr(), query.stride(0), key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0)),
        *(batch, heads, key_heads, width),
        *(address(query_scale), address(key_scale), epsilon, address(cosine), address(sine)),
        *(keys.data_ptr(), values.data_ptr(), length, slot, seen),
        *(out.data_ptr(), out.stride(0), torch.get_num_threads()),
    )
    _require_memory(failed)
    return out
