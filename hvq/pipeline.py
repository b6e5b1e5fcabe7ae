"""The whole trained system as one object: load, encode, decode, reconstruct, sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hvq.chunks import map_chunks
from hvq.data.pixels import unit_to_model
from hvq.errors import DataError
from hvq.evaluation.generation import decode_images, generate
from hvq.priors import SamplingOptions
from hvq.storage import Hierarchy, RunFolder, load_hierarchy


class HierarchicalVQ:
    """An autoencoder and the priors of its levels.

    Images are float `[B, C, H, W]` in [0, 1], codes int64 `[B, h, w]` by level name, coarse to fine; both on the CPU.

    Args:
        hierarchy: the trained models.
        chunk_size: rows of each forward; results do not depend on how many images are asked for at once.
    """

    def __init__(self, hierarchy: Hierarchy, *, chunk_size: int = 64) -> None:
        self.hierarchy = hierarchy
        self.chunk_size = chunk_size

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str | torch.device = "cpu", chunk_size: int = 64
    ) -> HierarchicalVQ:
        """Load a run folder: its autoencoder, and the priors that are there.

        Args:
            path: the folder of a run.
            device: where the models run.
            chunk_size: rows of each forward.

        Raises:
            CheckpointError: where the autoencoder is missing, a file is damaged, or models do not belong together.
        """
        return cls(load_hierarchy(RunFolder(path)).to(device), chunk_size=chunk_size)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, coarse to fine."""
        return self.hierarchy.autoencoder.level_names

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of labels; empty without."""
        return self.hierarchy.classes

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Codes of images.

        Raises:
            DataError: where the images are not float `[B, C, H, W]` in [0, 1].
        """
        self._check(images)
        model = self.hierarchy.autoencoder
        device = next(model.parameters()).device

        def encode(part: dict[str, Tensor]) -> dict[str, Tensor]:
            codes = model.encode(unit_to_model(part["images"].to(device)))
            return {name: code.cpu() for name, code in codes.items()}

        parts = list(map_chunks(encode, {"images": images.float()}, self.chunk_size))
        none = {name: torch.zeros(0, *grid, dtype=torch.int64) for name, grid in model.grids(images.shape[2:]).items()}
        return {name: torch.cat([none[name], *(part[name] for part in parts)]) for name in self.level_names}

    def decode(
        self, codes: Mapping[str, Tensor], *, size: Sequence[int] | None = None, absent: Collection[str] = ()
    ) -> Tensor:
        """Images of codes.

        Args:
            codes: of every level, in any order.
            size: (H, W) of the images; that of the training images by default.
            absent: levels to leave out.
        """
        return decode_images(self.hierarchy, codes, chunk_size=self.chunk_size, size=size, absent=absent)

    def reconstruct(self, images: Tensor, *, absent: Collection[str] = ()) -> Tensor:
        """Images to codes to images, of the same size."""
        return self.decode(self.encode(images), size=images.shape[2:], absent=absent)

    def sample(
        self,
        labels: Sequence[int] | int,
        *,
        seed: int = 0,
        options: Mapping[str, SamplingOptions] | None = None,
    ) -> Tensor:
        """New images, drawn level by level from the priors; image i depends on (seed, i) and its class alone.

        Args:
            labels: a class for each image, -1 for none; or how many images to draw, without classes.
            seed: of the noise.
            options: how codes are drawn, by level name; what the priors were saved with by default.

        Raises:
            CheckpointError: where a level has no prior.
            DataError: where a label is not a class, or options are given for a level that there is not.
        """
        classes = [-1] * labels if isinstance(labels, int) else list(labels)
        generated = generate(
            self.hierarchy,
            samples=range(len(classes)),
            labels=classes,
            seed=seed,
            chunk_size=self.chunk_size,
            options=options,
        )
        return generated.images.float() / 255

    def _check(self, images: Tensor) -> None:
        channels = self.hierarchy.channels
        if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise DataError(
                f"images must be floating point [B, {channels}, H, W] in [0, 1]; "
                f"received {images.dtype} {list(images.shape)}"
            )
        if not images.numel():
            return
        low, high = float(images.min()), float(images.max())
        # NaN is neither at least 0 nor at most 1.
        if not (low >= 0 and high <= 1):
            raise DataError(f"images must be in [0, 1]; received values in [{low:.3g}, {high:.3g}]: rescale them")
