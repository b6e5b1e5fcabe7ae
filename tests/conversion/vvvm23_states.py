"""The key layout of vvvm23's autoencoder, with random tensors, and what it computes, from the formulae, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tests.conversion.states import State, convolve, enlarge, lookup, nearest, random_state

CHANNELS, WIDTH, BLOCKS, RESIDUAL, DIMENSION, CODES = 3, 10, 2, 7, 5, 13

Shapes = dict[str, tuple[int, ...]]


def _norm(name: str, channels: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{tensor}": (channels,) for tensor in names}, f"{name}.num_batches_tracked": ()}


def _convolution(name: str, norm: str, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs, kernel, kernel), **_norm(norm, outputs)}
    return shapes | ({f"{name}.bias": (outputs,)} if bias else {})


def _transposed(name: str, norm: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (inputs, outputs, 4, 4), f"{name}.bias": (outputs,), **_norm(norm, outputs)}


def _blocks(name: str) -> Shapes:
    shapes: Shapes = {}
    for j in range(BLOCKS):
        layers = f"{name}.stack.{j}.layers"
        shapes |= _convolution(f"{layers}.0", f"{layers}.1", WIDTH, RESIDUAL, 3, bias=False)
        shapes |= _convolution(f"{layers}.3", f"{layers}.4", RESIDUAL, WIDTH, 3, bias=False)
        shapes[f"{name}.stack.{j}.alpha"] = ()
    return shapes


def _level(place: int, levels: int, halvings: int) -> Shapes:
    """Of the level that is `place` levels coarser than the finest."""
    there = f"encoders.{place}.layers"
    widths = [CHANNELS if place == 0 else WIDTH, WIDTH // 2, *[WIDTH] * halvings]
    shapes: Shapes = {}
    for i in range(halvings):
        shapes |= _convolution(f"{there}.{i}.0", f"{there}.{i}.1", widths[i], widths[i + 1], 4)
    shapes |= _convolution(f"{there}.{halvings}", f"{there}.{halvings + 1}", widths[halvings], WIDTH, 3)
    shapes |= _blocks(f"{there}.{halvings + 2}")
    told = 0 if place == levels - 1 else DIMENSION
    name = f"codebooks.{place}"
    shapes |= {f"{name}.conv_in.weight": (DIMENSION, WIDTH + told, 1, 1), f"{name}.conv_in.bias": (DIMENSION,)}
    shapes |= {f"{name}.embed": (DIMENSION, CODES), f"{name}.embed_avg": (DIMENSION, CODES)}
    shapes[f"{name}.cluster_size"] = (CODES,)
    there, outputs = f"decoders.{place}.layers", CHANNELS if place == 0 else DIMENSION
    shapes |= {f"{there}.0.weight": (WIDTH, DIMENSION * (levels - place), 3, 3), f"{there}.0.bias": (WIDTH,)}
    shapes |= _blocks(f"{there}.1")
    widths = [WIDTH, WIDTH // 2, *[outputs] * halvings]
    for i in range(halvings):
        shapes |= _transposed(f"{there}.{2 + i}.0", f"{there}.{2 + i}.1", widths[i], widths[i + 1])
    ends = f"{there}.{2 + halvings}"
    return shapes | _convolution(ends, f"{there}.{3 + halvings}", widths[halvings], outputs, 3)


def vvvm23_state(ratios: Sequence[int]) -> State:
    """Of levels with these ratios, fine to coarse."""
    halvings = [int(math.log2(ratio)) for ratio in ratios]
    shapes: Shapes = {}
    for place, steps in enumerate(halvings):
        shapes |= _level(place, len(ratios), steps)
    for i in range(len(ratios) - 1):
        for k, steps in enumerate(halvings[1 : len(ratios) - i][::-1]):
            for m in range(steps):
                there = f"upscalers.{i}.stages.{k}"
                shapes |= _transposed(f"{there}.{3 * m}", f"{there}.{3 * m + 1}", DIMENSION, DIMENSION)
    state = random_state(shapes)
    for name in state:
        if name.endswith(".num_batches_tracked"):
            state[name] = torch.tensor(17)
        elif name.endswith("running_var"):
            state[name] = state[name].square() + 0.5
        elif len(shapes[name]) == 1 and name.endswith("weight"):
            state[name] = 1 + 0.3 * state[name]
    for tensor in ("weight", "bias"):
        # Images of about the range of pixels.
        state[f"decoders.0.layers.{3 + halvings[0]}.{tensor}"] *= 0.25
    return state


def _normed(state: State, name: str, features: Tensor) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return functional.batch_norm(features, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)


def _through_blocks(state: State, name: str, features: Tensor) -> Tensor:
    for j in range(BLOCKS):
        layers = f"{name}.stack.{j}.layers"
        hidden = _normed(state, f"{layers}.1", convolve(state, f"{layers}.0", features, padding=1)).relu()
        hidden = _normed(state, f"{layers}.4", convolve(state, f"{layers}.3", hidden, padding=1)).relu()
        features = features + state[f"{name}.stack.{j}.alpha"] * hidden
    return features


def _encode_level(state: State, place: int, halvings: int, features: Tensor) -> Tensor:
    there = f"encoders.{place}.layers"
    for i in range(halvings):
        features = _normed(state, f"{there}.{i}.1", convolve(state, f"{there}.{i}.0", features, 2, 1)).relu()
    features = convolve(state, f"{there}.{halvings}", features, padding=1)
    return _through_blocks(state, f"{there}.{halvings + 2}", _normed(state, f"{there}.{halvings + 1}", features))


def _decode_level(state: State, place: int, halvings: int, vectors: Tensor) -> Tensor:
    there = f"decoders.{place}.layers"
    features = _through_blocks(state, f"{there}.1", convolve(state, f"{there}.0", vectors, padding=1))
    for i in range(2, 2 + halvings):
        features = _normed(state, f"{there}.{i}.1", enlarge(state, f"{there}.{i}.0", features)).relu()
    return _normed(state, f"{there}.{3 + halvings}", convolve(state, f"{there}.{2 + halvings}", features, padding=1))


def _enlarge_one(state: State, i: int, stage: int, halvings: int, vectors: Tensor) -> Tensor:
    there = f"upscalers.{i}.stages.{stage}"
    for m in range(halvings):
        vectors = _normed(state, f"{there}.{3 * m + 1}", enlarge(state, f"{there}.{3 * m}", vectors)).relu()
    return vectors


def vvvm23_forward(
    state: State, ratios: Sequence[int], images: Tensor | None = None, codes: Mapping[int, Tensor] | None = None
) -> tuple[dict[int, Tensor], Tensor]:
    """Codes by place, 0 the finest, and images; of images, or of codes that are known."""
    halvings = [int(math.log2(ratio)) for ratio in ratios]
    features: list[Tensor] = []
    if images is not None:
        for place, steps in enumerate(halvings):
            features.append(_encode_level(state, place, steps, features[-1] if features else images))
    found: dict[int, Tensor] = dict(codes or {})
    coarser: list[Tensor] = []
    told: Tensor | None = None
    for place in reversed(range(len(ratios))):
        columns = state[f"codebooks.{place}.embed"]
        if images is not None:
            joined = features[place] if told is None else torch.cat([features[place], told], dim=1)
            found[place] = nearest(columns, convolve(state, f"codebooks.{place}.conv_in", joined))
        if place < len(ratios) - 1:
            stages = range(len(coarser))
            coarser = [_enlarge_one(state, i, len(coarser) - 1 - i, halvings[place + 1], coarser[i]) for i in stages]
        own = lookup(columns, found[place])
        told = _decode_level(state, place, halvings[place], torch.cat([own, *coarser], dim=1))
        coarser.append(own)
    assert told is not None
    return found, told
