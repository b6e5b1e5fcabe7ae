"""One level of the hierarchy.

Letters: B batch, F feature channels, E context channels, D code dimension, `*grid` the level's spatial axes.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from hvq.quantizers import Quantizer

Model = TypeVar("Model", bound=nn.Module)


class Level(nn.Module):
    """Encoder, projection, quantizer, and the merge that feeds the next finer level.

    Args:
        name: of the level, for codes, files and logs.
        ratio: size of the next finer level's grid (of the image, for the finest) over this one's, per axis.
        encoder: finer features (or the image) to features `[B, F, *grid]`, `ratio` times smaller.
        projection: features joined with the context of coarser levels, `[B, F + E, *grid]`, to latents `[B, D, *grid]`.
        quantizer: latents to codes and vectors.
        merge: context joined with vectors, `[B, E + D, *grid]`, to the context of the next finer level, on its grid;
            None for the finest, whose joined vectors go to the image decoder. The context may be the vectors of all
            coarser levels, which the stack has enlarged.
        learn_absent: whether the stand-in for this level's absent vectors is learned; it is the mean codebook vector,
            weighted by usage, otherwise.
    """

    def __init__(
        self,
        *,
        name: str,
        ratio: int,
        encoder: nn.Module,
        projection: nn.Module,
        quantizer: Quantizer,
        merge: nn.Module | None,
        learn_absent: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.ratio = ratio
        self.encoder = encoder
        self.projection = projection
        self.quantizer = quantizer
        self.merge = merge
        self.absent = nn.Parameter(torch.zeros(quantizer.code_dimension)) if learn_absent else None

    def latents(self, features: Tensor, context: Tensor | None) -> Tensor:
        """Latents `[B, D, *grid]`, given what the coarser levels already decoded."""
        return self.projection(join(context, features))

    def decode(self, vectors: Tensor, context: Tensor | None) -> Tensor:
        """Context for what comes next: the finer level, or the image decoder."""
        joined = join(context, vectors)
        return joined if self.merge is None else self.merge(joined)

    def freeze(self) -> None:
        """Stop learning: encoder, projection, codebook, merge and absent vector stay as they are.

        The level's codes stay so too, where all finer levels are frozen with it: its encoder sees their features.
        """
        self.requires_grad_(False)
        self.quantizer.freeze()

    def absent_vector(self) -> Tensor:
        """`[D]`, what stands for this level's vectors where they are absent; a mean is no way for gradients to pass."""
        return self.quantizer.mean_vector().detach() if self.absent is None else self.absent

    def absent_like(self, vectors: Tensor) -> Tensor:
        """The absent vector at every place of `vectors` `[B, D, *grid]`."""
        return self.absent_vector().to(vectors.dtype).view(1, -1, *[1] * (vectors.dim() - 2)).expand_as(vectors)

    def mask_absent(self, vectors: Tensor, kept: Tensor) -> Tensor:
        """`vectors` `[B, D, *grid]`, replaced by the absent vector for samples where `kept` (bool `[B]`) is False."""
        return torch.where(kept.view(-1, *[1] * (vectors.dim() - 1)), vectors, self.absent_like(vectors))


def join(*tensors: Tensor | None) -> Tensor:
    """Those that are there, one after the other along the channels, in the layout of `channels_last`."""
    # One memory layout whatever made the tensors, so that decoding codes repeats the forward's arithmetic exactly.
    there = [channels_last(tensor) for tensor in tensors if tensor is not None]
    return there[0] if len(there) == 1 else torch.cat(there, dim=1)


def weights_channels_last(model: Model) -> Model:
    """The model, its weights channels last in memory, which is the layout of convolutions that are fastest.

    Those of one input channel lie so in any case. They keep the strides of plain tensors, which their gradients have
    too: DistributedDataParallel compares strides, of axes of length 1 as well.
    """
    # Torch takes the layout of four axes or that of five, and refuses tensors of the other number.
    volumes = any(tensor.dim() == 5 for tensor in model.parameters())
    layout = torch.channels_last_3d if volumes else torch.channels_last
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    for parameter in model.parameters():
        if parameter.dim() in (4, 5) and parameter.shape[1] == 1:
            parameter.data = parameter.data.reshape(-1).view(parameter.shape)
    return model


def channels_last(tensor: Tensor) -> Tensor:
    """The same numbers, channels last in memory where a layout is known: there convolutions are fastest.

    What a quantizer gives lies so already, and so do the rows that it wants.
    """
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=layouts.get(tensor.dim(), torch.contiguous_format))
