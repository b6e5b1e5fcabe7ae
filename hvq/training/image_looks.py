"""Looks at held-out images while an autoencoder trains."""

from __future__ import annotations

import torch
from torch import Tensor

from hvq.autoencoders import Autoencoder
from hvq.chunks import map_chunks
from hvq.data import ImageSource, ordered_batches
from hvq.data.pixels import kept_to_model, model_to_unit
from hvq.distributed import Reduction
from hvq.training.code_window import CodeWindow
from hvq.training.optimization import StepReport
from hvq.training.reconstruction_picture import ReconstructionPicture

# Held-out images looked at while training; the whole split is evaluated at the end.
_HELD_OUT_IMAGES = 1_024


class ImageLooks:
    """The `Watch` of an autoencoder in training.

    Args:
        model: in training.
        source: of held-out images.
        chunk_size: images in each forward.
        reduction: over the processes that train together.
        window: counts codes between lines of the log.
    """

    score = "held_out_mse"

    def __init__(
        self, model: Autoencoder, source: ImageSource, chunk_size: int, reduction: Reduction, window: CodeWindow
    ) -> None:
        self._model, self._source, self._chunk_size = model, source, chunk_size
        self._reduction, self._window = reduction, window
        self._shown = ReconstructionPicture(source, chunk_size)

    def observe(self, report: StepReport) -> None:
        """A step needs no more than its report says."""

    def window(self) -> dict[str, float]:
        """Usage, perplexity and norm of every codebook."""
        return {**self._window.numbers(self._reduction), **codebook_norms(self._model)}

    def look(self) -> dict[str, float]:
        """Mean squared error on [0, 1] over the first held-out images, by another name where latents still pass."""
        error = held_out_error(self._model, self._source, self._chunk_size, self._reduction)
        continuous = any(quantizer.continuous for quantizer in self._model.quantizers.values())
        return {"unquantized_held_out_mse" if continuous else self.score: error}

    def pictures(self) -> dict[str, Tensor]:
        """A few held-out images: the originals, and what more and more levels make of them."""
        return {"reconstructions": self._shown.picture(self._model)} if len(self._source) else {}

    def stops(self) -> bool:
        """Never before the last step."""
        return False


@torch.no_grad()
def codebook_norms(model: Autoencoder) -> dict[str, float]:
    """`codebook_norm.<level>`, the mean length of the vectors that codes are looked up in, over those that are alive.

    Not of levels whose codebook is still to be set, nor of those that have none.
    """
    vectors = {
        name: quantizer.learned_vectors() for name, quantizer in model.quantizers.items() if not quantizer.continuous
    }
    return {
        f"codebook_norm.{name}": float(torch.cat([rows.norm(dim=1) for rows in several]).mean())
        for name, several in vectors.items()
        if several
    }


@torch.no_grad()
def held_out_error(model: Autoencoder, source: ImageSource, chunk_size: int, reduction: Reduction) -> float:
    """Mean squared error on [0, 1] over the first held-out images, the same for any number of processes."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros(2, dtype=torch.float64)
    stop = min(_HELD_OUT_IMAGES, len(source))
    for batch in ordered_batches(
        source, chunk_size=chunk_size, rank=reduction.rank, processes=reduction.size, stop=stop
    ):
        images = kept_to_model(batch.images.to(device))
        parts = map_chunks(
            lambda part: {"images": model(part["images"]).reconstruction}, {"images": images}, chunk_size
        )
        restored = torch.cat([part["images"] for part in parts])
        squared = (model_to_unit(restored) - model_to_unit(images)).double().square().sum()
        total += torch.stack([squared.cpu(), torch.tensor(float(images.numel()), dtype=torch.float64)])
    model.train(was_training)
    squared_sum, count = reduction.sum(total.to(device)).tolist()
    return squared_sum / max(1.0, count)
