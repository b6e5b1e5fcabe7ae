"""A moving average of a model's weights (Polyak averaging), which is often the better model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hvq.training.sharding import reshard


class WeightAverage:
    """Moving average of all parameters; buffers, codebooks among them, are averages of their own kind and left alone.

    Early on the average is over the steps that there were, so that it starts without a bias.

    Args:
        model: whose parameters are averaged.
        decay: per step; 0 keeps no average, and the last weights are the result.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(layer, decay=0.5)
    >>> with torch.no_grad(): _ = layer.weight.fill_(4.0)
    >>> average.update(step=10)
    >>> with average.applied(): inside = layer.weight.item()
    >>> inside < 4.0, layer.weight.item()
    (True, 4.0)
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._model = model
        reshard(model)
        self._parameters = dict(model.named_parameters())
        self.tensors = {name: p.detach().clone() for name, p in self._parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step number `step`."""
        if not self.decay:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            average.lerp_(self._parameters[name].detach(), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def keep(self) -> None:
        """The averaged weights become the model's own, as at the end of training."""
        reshard(self._model)
        for name, average in self.tensors.items():
            self._parameters[name].copy_(average)

    @torch.no_grad()
    def _swap(self) -> None:
        reshard(self._model)
        for name, average in self.tensors.items():
            parameter = self._parameters[name]
            held: Tensor = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
