"""Forwards at one fixed batch size: what a model gives for a row does not depend on how many rows there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


def padded_rows(tensor: Tensor, length: int) -> Tensor:
    """`tensor` `[n, ...]` filled up to `length` rows by repeating the last, with zeros where there is none.

    >>> padded_rows(torch.tensor([1, 2]), 4).tolist()
    [1, 2, 2, 2]
    """
    missing = length - len(tensor)
    last = tensor[-1:] if len(tensor) else tensor.new_zeros(1, *tensor.shape[1:])
    return tensor if missing <= 0 else torch.cat([tensor, last.expand(missing, *tensor.shape[1:])])


def map_chunks(
    function: Callable[[dict[str, Tensor]], dict[str, Tensor]], inputs: Mapping[str, Tensor], chunk_size: int
) -> Iterator[dict[str, Tensor]]:
    """Apply `function` to chunks of rows, each of exactly `chunk_size`; rows that only fill up are cut off again.

    Args:
        function: from tensors `[chunk_size, ...]` by name to tensors `[chunk_size, ...]` by name.
        inputs: tensors `[n, ...]` by name, n >= 1.
        chunk_size: rows in each call.

    >>> doubled = map_chunks(lambda parts: {"y": 2 * parts["x"]}, {"x": torch.arange(5)}, chunk_size=2)
    >>> [part["y"].tolist() for part in doubled]
    [[0, 2], [4, 6], [8]]
    """
    rows = len(next(iter(inputs.values())))
    for start in range(0, rows, chunk_size):
        end = min(start + chunk_size, rows)
        results = function({name: padded_rows(tensor[start:end], chunk_size) for name, tensor in inputs.items()})
        yield {name: result[: end - start] for name, result in results.items()}
