"""The first steps of an autoencoder, in which latents pass unquantized; then its codebooks are set."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hvq.autoencoders import Autoencoder, initialize_codebooks
from hvq.autoencoders.initialization import batches_for_codebooks, let_latents_pass, needs_codebooks
from hvq.config import AutoencoderTrainingConfig
from hvq.data.pixels import kept_to_model
from hvq.distributed import Reduction


class ContinuousStart:
    """Sets codebooks that are still to be set by k-means, after the steps in which latents pass unquantized.

    Which images k-means sees, and when, is a function of the configuration alone, so that a resumed run goes on as if
    it had never stopped; checkpoints keep which codebooks have been set.

    Args:
        model: not wrapped, on the device of the training.
        training: how many steps there are, and how many of them are continuous.
        batches: of this process, as they are kept, `[B, C, *size]`, the first ones of the training; asked for where a
            codebook is to be set, and kept until then.
        reduction: over the processes that train together.

    Raises:
        DataError: where there are no batches.
    """

    def __init__(
        self,
        model: Autoencoder,
        training: AutoencoderTrainingConfig,
        batches: Iterable[Tensor],
        reduction: Reduction | None = None,
    ) -> None:
        self._model, self._training = model, training
        self._reduction = reduction or Reduction()
        self._images = batches_for_codebooks(model, batches, self._reduction.size) if needs_codebooks(model) else []
        let_latents_pass(model)

    def begin_step(self, step: int) -> None:
        """Set the codebooks where their time has come; called before optimizer step number `step`, from 0."""
        if not self._images or step < self._training.continuous_start:
            return
        device = next(self._model.parameters()).device
        images = (kept_to_model(batch.to(device)) for batch in self._images)
        initialize_codebooks(self._model, images, self._reduction, batches_per_step=self._training.micro_batches)
        self._images = []
