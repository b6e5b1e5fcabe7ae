"""Key layouts of other projects' state dicts, with random tensors, and what their models compute, from the formulae.

The arithmetic is written for these tests, in float64, with nothing but `torch.nn.functional`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    """Tensors whose outputs neither grow nor vanish; counts are positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        if name.endswith("cluster_size"):
            tensor = tensor.abs() + 0.5
        elif name.endswith(("weight_g", "alpha")):
            tensor = 1 + 0.3 * tensor
        elif name.endswith("weight") and len(shape) > 1:
            tensor = 1.5 * tensor / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("bias"):
            tensor = 0.3 * tensor
        state[name] = tensor
    return state


def double(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def convolve(state: State, name: str, features: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return functional.conv2d(features, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding)


def enlarge(state: State, name: str, features: Tensor) -> Tensor:
    return functional.conv_transpose2d(features, state[f"{name}.weight"], state[f"{name}.bias"], 2, 1)


def nearest(columns: Tensor, latents: Tensor) -> Tensor:
    """Codes `[B, h, w]` of latents `[B, D, h, w]` among vectors `[D, K]`, by the differences themselves."""
    differences = latents.movedim(1, -1).unsqueeze(-1) - columns
    return differences.square().sum(dim=-2).argmin(dim=-1)


def lookup(columns: Tensor, codes: Tensor) -> Tensor:
    return columns.T[codes].movedim(-1, 1)


# --- rosinality's autoencoder ---------------------------------------------------------------------------------------

CHANNELS, WIDTH, BLOCKS, RESIDUAL, DIMENSION = 3, 10, 2, 7, 5
SIZES = {"top": 11, "bottom": 13}


def _convolution(name: str, inputs: int, outputs: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _transposed(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (inputs, outputs, 4, 4), f"{name}.bias": (outputs,)}


def _residuals(name: str, first: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(first, first + BLOCKS):
        shapes |= _convolution(f"{name}.{i}.conv.1", WIDTH, RESIDUAL, 3)
        shapes |= _convolution(f"{name}.{i}.conv.3", RESIDUAL, WIDTH, 1)
    return shapes


def rosinality_state() -> State:
    """The autoencoder's."""
    shapes: dict[str, tuple[int, ...]] = {
        **_convolution("enc_b.blocks.0", CHANNELS, WIDTH // 2, 4),
        **_convolution("enc_b.blocks.2", WIDTH // 2, WIDTH, 4),
        **_convolution("enc_b.blocks.4", WIDTH, WIDTH, 3),
        **_residuals("enc_b.blocks", 5),
        **_convolution("enc_t.blocks.0", WIDTH, WIDTH // 2, 4),
        **_convolution("enc_t.blocks.2", WIDTH // 2, WIDTH, 3),
        **_residuals("enc_t.blocks", 3),
        **_convolution("quantize_conv_t", WIDTH, DIMENSION, 1),
        **_convolution("dec_t.blocks.0", DIMENSION, WIDTH, 3),
        **_residuals("dec_t.blocks", 1),
        **_transposed("dec_t.blocks.4", WIDTH, DIMENSION),
        **_convolution("quantize_conv_b", DIMENSION + WIDTH, DIMENSION, 1),
        **_transposed("upsample_t", DIMENSION, DIMENSION),
        **_convolution("dec.blocks.0", 2 * DIMENSION, WIDTH, 3),
        **_residuals("dec.blocks", 1),
        **_transposed("dec.blocks.4", WIDTH, WIDTH // 2),
        **_transposed("dec.blocks.6", WIDTH // 2, CHANNELS),
    }
    for level, size in SIZES.items():
        name = f"quantize_{level[0]}"
        shapes |= {f"{name}.embed": (DIMENSION, size), f"{name}.embed_avg": (DIMENSION, size)}
        shapes[f"{name}.cluster_size"] = (size,)
    return random_state(shapes)


def _through_residuals(state: State, name: str, first: int, features: Tensor) -> Tensor:
    for i in range(first, first + BLOCKS):
        hidden = convolve(state, f"{name}.{i}.conv.1", features.relu(), padding=1)
        features = features + convolve(state, f"{name}.{i}.conv.3", hidden.relu())
    return features.relu()


def rosinality_encode(state: State, images: Tensor) -> dict[str, Tensor]:
    fine = convolve(state, "enc_b.blocks.0", images, 2, 1).relu()
    fine = convolve(state, "enc_b.blocks.2", fine, 2, 1).relu()
    fine = _through_residuals(state, "enc_b.blocks", 5, convolve(state, "enc_b.blocks.4", fine, padding=1))
    coarse = convolve(state, "enc_t.blocks.0", fine, 2, 1).relu()
    coarse = _through_residuals(state, "enc_t.blocks", 3, convolve(state, "enc_t.blocks.2", coarse, padding=1))
    top = nearest(state["quantize_t.embed"], convolve(state, "quantize_conv_t", coarse))
    told = convolve(state, "dec_t.blocks.0", lookup(state["quantize_t.embed"], top), padding=1)
    told = enlarge(state, "dec_t.blocks.4", _through_residuals(state, "dec_t.blocks", 1, told))
    latents = convolve(state, "quantize_conv_b", torch.cat([told, fine], dim=1))
    return {"top": top, "bottom": nearest(state["quantize_b.embed"], latents)}


def rosinality_decode(state: State, codes: Mapping[str, Tensor]) -> Tensor:
    top = enlarge(state, "upsample_t", lookup(state["quantize_t.embed"], codes["top"]))
    joined = torch.cat([top, lookup(state["quantize_b.embed"], codes["bottom"])], dim=1)
    hidden = _through_residuals(state, "dec.blocks", 1, convolve(state, "dec.blocks.0", joined, padding=1))
    return enlarge(state, "dec.blocks.6", enlarge(state, "dec.blocks.4", hidden).relu())


# --- rosinality's PixelSNAIL ----------------------------------------------------------------------------------------

# Eight heads of two channels each.
CODES, PRIOR_WIDTH, PRIOR_RESIDUAL, CONTEXT, KERNEL, HEADS = 11, 32, 7, 5, 5, 8
PRIOR_BLOCKS, PRIOR_RESIDUAL_BLOCKS, OUTPUT_BLOCKS, CONTEXT_BLOCKS = 2, 2, 1, 2


def _normed(name: str, *shape: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight_g": (shape[0], *[1] * (len(shape) - 1))}
    return {**shapes, f"{name}.weight_v": shape} | ({f"{name}.bias": (shape[0],)} if bias else {})


def _gated(
    name: str, channels: int, inner: int, kernel: int, *, causal: bool = False, auxiliary: int = 0, context: int = 0
) -> dict[str, tuple[int, ...]]:
    ending = ".conv.conv" if causal else ".conv"
    shapes = {
        **_normed(f"{name}.conv1{ending}", inner, channels, kernel, kernel),
        **_normed(f"{name}.conv2{ending}", 2 * channels, inner, kernel, kernel),
    }
    if auxiliary:
        shapes |= _normed(f"{name}.aux_conv.conv", inner, auxiliary, 1, 1)
    if context:
        shapes |= _normed(f"{name}.condition.conv", 2 * channels, context, 1, 1, bias=False)
    return shapes


def pixelsnail_state(grid: tuple[int, int], *, conditioned: bool) -> State:
    """Of the top, with attention and blocks behind it, or of the bottom, with neither but conditioned."""
    wide, reach = PRIOR_WIDTH, KERNEL // 2
    shapes = {
        **_normed("horizontal.conv.conv", wide, CODES, reach, KERNEL),
        **_normed("vertical.conv.conv", wide, CODES, reach + 1, reach),
    }
    for i in range(PRIOR_BLOCKS):
        for j in range(PRIOR_RESIDUAL_BLOCKS):
            told = CONTEXT if conditioned else 0
            shapes |= _gated(f"blocks.{i}.resblocks.{j}", wide, PRIOR_RESIDUAL, KERNEL, causal=True, context=told)
        if conditioned:
            shapes |= _normed(f"blocks.{i}.out.conv", wide, wide + 2, 1, 1)
            continue
        shapes |= _gated(f"blocks.{i}.key_resblock", 2 * wide + 2, wide, 1)
        shapes |= _gated(f"blocks.{i}.query_resblock", wide + 2, wide, 1)
        shapes |= _gated(f"blocks.{i}.out_resblock", wide, wide, 1, auxiliary=wide // 2)
        for part, inputs in (("query", wide + 2), ("key", 2 * wide + 2), ("value", 2 * wide + 2)):
            shapes |= _normed(f"blocks.{i}.causal_attention.{part}", wide // 2, inputs)
    outputs = 0 if conditioned else OUTPUT_BLOCKS
    for i in range(outputs):
        shapes |= _gated(f"out.{i}", wide, PRIOR_RESIDUAL, 1)
    shapes |= _normed(f"out.{outputs + 1}.conv", CODES, wide, 1, 1)
    if conditioned:
        shapes |= _normed("cond_resnet.blocks.0.conv", CONTEXT, CODES, 3, 3)
        for i in range(CONTEXT_BLOCKS):
            shapes |= _gated(f"cond_resnet.blocks.{i + 1}", CONTEXT, CONTEXT, 3)
    return {**random_state(shapes), "background": _places(grid).float()}


def _places(grid: tuple[int, int]) -> Tensor:
    rows, columns = (torch.arange(n, dtype=torch.float64) / n - 0.5 for n in grid)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).unsqueeze(0)


def _weight(state: State, name: str, seen: Tensor | None = None) -> Tensor:
    direction = state[f"{name}.weight_v"] if seen is None else state[f"{name}.weight_v"] * seen
    length = direction.flatten(1).square().sum(dim=1).sqrt()
    return state[f"{name}.weight_g"] * direction / length.view(-1, *[1] * (direction.dim() - 1))


def _layer(state: State, name: str, features: Tensor, *, causal: bool = False) -> Tensor:
    """Padded all around; or above and at the sides, without what the raster order has not reached."""
    if not causal:
        weight = _weight(state, f"{name}.conv")
        return functional.conv2d(features, weight, state.get(f"{name}.conv.bias"), padding=weight.shape[2] // 2)
    name, reach = f"{name}.conv.conv", KERNEL // 2
    seen = torch.ones(KERNEL, KERNEL, dtype=torch.float64)
    seen[-1, reach:] = 0
    padded = functional.pad(features, (reach, reach, KERNEL - 1, 0))
    return functional.conv2d(padded, _weight(state, name, seen), state[f"{name}.bias"])


def _gate(
    state: State,
    name: str,
    features: Tensor,
    *,
    causal: bool = False,
    auxiliary: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    hidden = _layer(state, f"{name}.conv1", functional.elu(features), causal=causal)
    if auxiliary is not None:
        hidden = hidden + _layer(state, f"{name}.aux_conv", functional.elu(auxiliary))
    hidden = _layer(state, f"{name}.conv2", functional.elu(hidden), causal=causal)
    if context is not None:
        hidden = hidden + _layer(state, f"{name}.condition", context)
    content, gate = hidden.chunk(2, dim=1)
    return features + content * gate.sigmoid()


def _attend(state: State, name: str, query: Tensor, key: Tensor) -> Tensor:
    """Each position over those before it, one after the other; the first gets zeros."""

    def heads(part: str, features: Tensor) -> Tensor:
        rows = features.flatten(2).transpose(1, 2) @ _weight(state, f"{name}.{part}").T + state[f"{name}.{part}.bias"]
        return rows.unflatten(2, (HEADS, -1)).transpose(1, 2)

    queries, keys, values = heads("query", query), heads("key", key), heads("value", key)
    found = torch.zeros_like(values)
    for t in range(1, queries.shape[2]):
        scores = (queries[:, :, t : t + 1] * keys[:, :, :t]).sum(dim=-1) / math.sqrt(queries.shape[3])
        found[:, :, t] = (scores.softmax(dim=-1).unsqueeze(-1) * values[:, :, :t]).sum(dim=2)
    return found.transpose(2, 3).flatten(1, 2).unflatten(2, query.shape[2:])


def _one_hot(codes: Tensor) -> Tensor:
    return functional.one_hot(codes, CODES).movedim(-1, 1).double()


def _first(state: State, codes: Tensor) -> Tensor:
    """What the rows above say, but for the first row, and what the columns to the left say, but for the first one."""
    planes, reach = _one_hot(codes), KERNEL // 2
    out = torch.zeros(len(codes), PRIOR_WIDTH, *codes.shape[1:], dtype=torch.float64)
    above = functional.pad(planes, (reach, reach, reach - 1, 0))
    name = "horizontal.conv.conv"
    out[:, :, 1:] += functional.conv2d(above, _weight(state, name), state[f"{name}.bias"])[:, :, :-1]
    left, name = functional.pad(planes, (reach - 1, 0, reach, 0)), "vertical.conv.conv"
    out[:, :, :, 1:] += functional.conv2d(left, _weight(state, name), state[f"{name}.bias"])[:, :, :, :-1]
    return out


def pixelsnail_logits(state: State, codes: Tensor, top: Tensor | None = None) -> Tensor:
    """`[B, h, w, K]` of codes `[B, h, w]`."""
    context, features = None, _first(state, codes)
    if top is not None:
        context = _layer(state, "cond_resnet.blocks.0", _one_hot(top))
        for i in range(CONTEXT_BLOCKS):
            context = _gate(state, f"cond_resnet.blocks.{i + 1}", context)
        context = context.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    places = state["background"].expand(len(codes), -1, -1, -1)
    for i in range(PRIOR_BLOCKS):
        given, name = features, f"blocks.{i}"
        for j in range(PRIOR_RESIDUAL_BLOCKS):
            features = _gate(state, f"{name}.resblocks.{j}", features, causal=True, context=context)
        if top is not None:
            features = _layer(state, f"{name}.out", torch.cat([features, places], dim=1))
            continue
        key = _gate(state, f"{name}.key_resblock", torch.cat([given, features, places], dim=1))
        query = _gate(state, f"{name}.query_resblock", torch.cat([features, places], dim=1))
        found = _attend(state, f"{name}.causal_attention", query, key)
        features = _gate(state, f"{name}.out_resblock", features, auxiliary=found)
    outputs = 0 if top is not None else OUTPUT_BLOCKS
    for i in range(outputs):
        features = _gate(state, f"out.{i}", features)
    return _layer(state, f"out.{outputs + 1}", functional.elu(features)).movedim(1, -1)
