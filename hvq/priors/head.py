"""From the features of a position to the logits of its codes.

Letters: E channels, G codes per position, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hvq.priors.step_product import StepProduct

# Logits of a fresh prior are all but equal, so that training starts at log K nats per code.
_STANDARD_DEVIATION = 0.02


class CodeHead(nn.Module):
    """Logits of the G codes of a position, each given the ones before it.

    With one code it is a linear map. With more, the earlier codes of the position are added to its features, and a
    small network reads the sum before the linear map of each code.

    Args:
        channels: E.
        codebook_size: K.
        codes_per_position: G.

    >>> head = CodeHead(channels=6, codebook_size=5, codes_per_position=3)
    >>> head(torch.zeros(2, 7, 6), torch.zeros(2, 7, 3, dtype=torch.int64)).shape
    torch.Size([2, 7, 3, 5])
    """

    def __init__(self, *, channels: int, codebook_size: int, codes_per_position: int = 1) -> None:
        super().__init__()
        self.outputs = nn.ModuleList(nn.Linear(channels, codebook_size) for _ in range(codes_per_position))
        several = codes_per_position > 1
        self.earlier = nn.ModuleList(nn.Embedding(codebook_size, channels) for _ in range(codes_per_position - 1))
        self.mix = nn.Sequential(nn.Linear(channels, channels), nn.GELU()) if several else nn.Identity()
        for name, parameter in self.outputs.named_parameters():
            nn.init.normal_(parameter, std=_STANDARD_DEVIATION if name.endswith("weight") else 0.0)

    def forward(self, features: Tensor, codes: Tensor) -> Tensor:
        """Logits `[..., G, K]` of features `[..., E]`, by teacher forcing of int64 codes `[..., G]`."""
        steps = range(len(self.outputs))
        maps = list(self.outputs)
        return torch.stack([self.step(features, codes[..., :i].unbind(dim=-1), maps) for i in steps], dim=-2)

    def make_state(self) -> list[StepProduct]:
        """The linear map of each code, laid out for steps."""
        return [StepProduct.of(output) for output in self.outputs]  # type: ignore[arg-type]

    def step(self, features: Tensor, codes: Sequence[Tensor], state: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """Logits `[..., K]` of the code after `codes`, int64 `[...]` each."""
        for embedding, code in zip(self.earlier, codes, strict=False):
            features = features + embedding(code)
        return state[len(codes)](self.mix(features))
