"""A few held-out images and their reconstructions in one picture, for those who watch a training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hvq.autoencoders import Autoencoder
from hvq.data import ImageSource
from hvq.data.pixels import kept_to_model, model_to_unit, unit_to_kept
from hvq.data.views import as_pictures

_IMAGES = 8
# Smaller images are enlarged, by repeating pixels.
_SMALLEST_SIDE = 64
_GAP, _GROUND = 2, 255


class ReconstructionPicture:
    """The originals in the first row; below, what the coarsest level makes of them, the two coarsest, and so on.

    Args:
        source: of held-out images, spread over which a few are chosen; the first ones where a source is read from end
            to end.
        most: images at the most, as in any forward.
    """

    def __init__(self, source: ImageSource, most: int) -> None:
        self._source, self._number = source, min(_IMAGES, most, len(source))
        self._originals: Tensor | None = None

    @torch.no_grad()
    def picture(self, model: Autoencoder) -> Tensor:
        """uint8 `[H, W, 3]`, by a forward in evaluation mode; the model is left in the mode that it was in."""
        originals, was_training = self._images(), model.training
        model.eval()
        result = model(kept_to_model(originals.to(next(model.parameters()).device)), prefixes=True)
        model.train(was_training)
        restored = [*result.prefixes.values(), result.reconstruction]
        rows = [originals, *(unit_to_kept(model_to_unit(images)).cpu() for images in restored)]
        return tiled([as_pictures(row) for row in rows])

    def _images(self) -> Tensor:
        if self._originals is None:
            in_order = hasattr(self._source, "sequential_reader")
            last = self._number if in_order else len(self._source)
            self._originals = self._source.fetch(np.arange(self._number) * last // max(1, self._number)).images
        return self._originals


def tiled(rows: Sequence[Tensor]) -> Tensor:
    """One picture, uint8 `[H, W, 3]`, of rows of images, uint8 `[n, C, h, w]`, with gaps between them.

    >>> tiled([torch.zeros(5, 1, 70, 64, dtype=torch.uint8)] * 2).shape
    torch.Size([142, 328, 3])
    """
    images = torch.stack(list(rows))
    images = images[:, :, :3] if images.shape[2] >= 3 else images[:, :, :1].expand(-1, -1, 3, -1, -1)
    times = -(-_SMALLEST_SIDE // max(images.shape[3:]))
    images = images.repeat_interleave(times, dim=3).repeat_interleave(times, dim=4)
    spaced = torch.nn.functional.pad(images, (0, _GAP, 0, _GAP), value=_GROUND)
    number, count, _, height, width = spaced.shape
    picture = spaced.permute(0, 3, 1, 4, 2).reshape(number * height, count * width, 3)
    return picture[:-_GAP, :-_GAP].contiguous()
