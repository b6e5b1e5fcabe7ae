"""The whole trained system as one object: load, encode, decode, reconstruct, sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hvq.autoencoders import encode_tiled
from hvq.chunks import map_chunks
from hvq.config import Precision
from hvq.data.pixels import kept_to_unit, unit_to_model
from hvq.errors import DataError
from hvq.evaluation.generation import covered_cells, decode_images, generate
from hvq.model_card import ModelCard
from hvq.priors import SamplingOptions
from hvq.priors.known import Fixed
from hvq.storage import Hierarchy

_LETTERS = {1: "T", 2: "H, W", 3: "X, Y, Z"}


class HierarchicalVQ:
    """An autoencoder and the priors of its levels.

    Images are float `[B, C, *size]` in [0, 1], codes int64 `[B, *grid]` by level name, coarse to fine; both on the CPU.
    Of images the size is (H, W), of volumes (X, Y, Z), of signals (T); a wave w in [-1, 1] is (w + 1) / 2.

    Args:
        hierarchy: the trained models.
        chunk_size: rows of each forward; results do not depend on how many images are asked for at once.
    """

    def __init__(self, hierarchy: Hierarchy, *, chunk_size: int = 64) -> None:
        self.hierarchy = hierarchy
        self.chunk_size = chunk_size

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        chunk_size: int = 64,
        prior_precision: Precision = "float32",
    ) -> HierarchicalVQ:
        """Load a run folder, or a repository of the hub: its autoencoder, and the priors that are there.

        Args:
            path: the folder of a run, or what `save_pretrained` wrote; where there is none of that name, a repository
                `owner/name` of the hub.
            revision: branch, tag or commit of a repository.
            token: of a private repository.
            device: where the models run.
            chunk_size: rows of each forward.
            prior_precision: of the priors' weights; bfloat16 halves what a step of sampling reads, and draws other
                samples.

        Raises:
            CheckpointError: where the autoencoder is missing, a file is damaged, or models do not belong together.
        """
        hierarchy = Hierarchy.from_pretrained(
            path, revision=revision, token=token, device=device, prior_precision=prior_precision
        )
        return cls(hierarchy, chunk_size=chunk_size)

    def save_pretrained(self, folder: str | Path, *, card: ModelCard | None = None) -> None:
        """Write the models and a model card, which `from_pretrained` loads again (`Hierarchy.save_pretrained`)."""
        self.hierarchy.save_pretrained(folder, card=card)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, card: ModelCard | None = None
    ) -> str:
        """Publish the same as a repository of the hub; returns its address (`Hierarchy.push_to_hub`)."""
        return self.hierarchy.push_to_hub(repo_id, private=private, token=token, card=card)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, coarse to fine."""
        return self.hierarchy.autoencoder.level_names

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of labels; empty without."""
        return self.hierarchy.classes

    @property
    def vector_size(self) -> int:
        """Numbers of the vector that priors can be told of each image; 0 where they know of none."""
        return self.hierarchy.vector_size

    @torch.no_grad()
    def encode(self, images: Tensor, *, tile: int | None = None) -> dict[str, Tensor]:
        """Codes of images.

        Args:
            images: of any size from the coarsest stride up.
            tile: for large images, pixels per side that a forward sees at most; images are then encoded one by one, to
                the same codes but for near-ties (`hvq.autoencoders.encode_tiled`).

        Raises:
            DataError: where the images are not float `[B, C, *size]` in [0, 1].
            ConfigurationError: where tiles are too small for what the network sees, or it may see all of an image.
        """
        self._check(images)
        model = self.hierarchy.autoencoder
        device = next(model.parameters()).device

        def encode(part: dict[str, Tensor]) -> dict[str, Tensor]:
            if tile is not None:
                return encode_tiled(model, unit_to_model(part["images"]), tile=tile)
            codes = model.encode(unit_to_model(part["images"].to(device)))
            return {name: code.cpu() for name, code in codes.items()}

        rows = self.chunk_size if tile is None else 1
        parts = list(map_chunks(encode, {"images": images.cpu().float()}, rows))
        if not parts:
            grids = model.grids(images.shape[2:])
            shapes = {name: (0, *grids[name], *model.quantizers[name].code_shape) for name in self.level_names}
            return {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
        return {name: torch.cat([part[name] for part in parts]) for name in self.level_names}

    def decode(
        self,
        codes: Mapping[str, Tensor],
        *,
        size: Sequence[int] | None = None,
        absent: Collection[str] = (),
        tile: int | None = None,
    ) -> Tensor:
        """Images of codes.

        Args:
            codes: of every level, in any order.
            size: of the images; that of the training images by default.
            absent: levels to leave out.
            tile: for large images, pixels per side that a forward gives at most; images are then decoded one by one.
        """
        rows = self.chunk_size if tile is None else 1
        return decode_images(self.hierarchy, codes, chunk_size=rows, size=size, absent=absent, tile=tile)

    def reconstruct(self, images: Tensor, *, absent: Collection[str] = (), tile: int | None = None) -> Tensor:
        """Images to codes to images, of the same size; in tiles where they are large (`encode`, `decode`)."""
        return self.decode(self.encode(images, tile=tile), size=images.shape[2:], absent=absent, tile=tile)

    def sample(
        self,
        labels: Sequence[int] | int | None = None,
        *,
        vectors: Tensor | None = None,
        seed: int = 0,
        options: Mapping[str, SamplingOptions] | None = None,
        given: Mapping[str, Tensor] | None = None,
        fixed: Mapping[str, Fixed] | None = None,
    ) -> Tensor:
        """New images, drawn level by level from the priors; image i depends on (seed, i), its class and its vector
        alone.

        Args:
            labels: a class for each image, -1 for none; or how many images to draw, without classes. May be left out
                where there are vectors.
            vectors: floating point `[n, V]`, a vector for each image, NaN throughout for none, of priors that are
                conditioned on them; by default all are drawn as where vectors are hidden.
            seed: of the noise.
            options: how codes are drawn, by level name; what the priors were saved with by default.
            given: codes of levels that are taken as they are, a row for each image; these need no prior.
            fixed: for in-painting, by level name, codes and a mask, bool `[n, *grid]`, of the positions that keep them.
                Codes are drawn in raster order: a position sees all coarser codes, and the fixed ones before it.

        Raises:
            CheckpointError: where a level has neither prior nor codes.
            DataError: where a label is not a class, vectors are not those of the priors, options or codes are for a
                level that there is not, or codes do not fit theirs.
            ConfigurationError: where guidance is asked for, and the priors have neither classes nor vectors.
        """
        if labels is None:
            if vectors is None:
                raise DataError("sample takes labels, a number of images, or vectors; received none of them")
            labels = len(vectors)
        classes = [-1] * labels if isinstance(labels, int) else list(labels)
        generated = generate(
            self.hierarchy,
            samples=range(len(classes)),
            labels=classes,
            vectors=vectors,
            seed=seed,
            chunk_size=self.chunk_size,
            options=options,
            given=given,
            fixed=fixed,
        )
        return kept_to_unit(generated.images)

    def inpaint(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        labels: Sequence[int] | None = None,
        vectors: Tensor | None = None,
        seed: int = 0,
        options: Mapping[str, SamplingOptions] | None = None,
    ) -> Tensor:
        """Images with a part drawn anew: codes of cells that are kept as a whole stay, at every level.

        What is kept is rebuilt from its codes, not copied, and near its border codes were encoded from pixels beyond it
        too; `torch.where(mask.unsqueeze(1), images, result)` puts the very pixels back.

        Args:
            images: of the size that the priors were trained on.
            mask: bool `[B, *size]`, True where the image is kept.
            labels: a class for each image, -1 for none; none by default.
            vectors: a vector for each image, as in `sample`.
            seed: of the noise; what is drawn for image i depends on (seed, i) too.
            options: how codes are drawn, by level name; what the priors were saved with by default.

        Raises:
            DataError: where images or mask have another form or size, or a label is not a class.
            CheckpointError: where a level has no prior.
        """
        codes = self.encode(images)
        labels = [-1] * len(images) if labels is None else labels
        self._check_inpainting(images, mask, len(labels))
        strides = self.hierarchy.autoencoder.strides
        kept = {
            name: covered_cells(mask.cpu(), grid=self.hierarchy.grids[name], stride=strides[name]) for name in codes
        }
        return self.sample(
            labels,
            vectors=vectors,
            seed=seed,
            options=options,
            fixed={name: (codes[name], kept[name]) for name in codes},
        )

    def _check_inpainting(self, images: Tensor, mask: Tensor, labels: int) -> None:
        size = self.hierarchy.image_size
        if tuple(images.shape[2:]) != size:
            raise DataError(
                f"in-painting takes images of {'x'.join(map(str, size))}, the size that the priors were trained on; "
                f"received {'x'.join(map(str, images.shape[2:]))}: resize or crop them"
            )
        if mask.dtype != torch.bool or mask.shape != (len(images), *size):
            raise DataError(
                f"the mask must be bool {[len(images), *size]}, True where an image is kept; "
                f"received {mask.dtype} {list(mask.shape)}"
            )
        if labels != len(images):
            raise DataError(
                f"each image takes one label, -1 for none; received {len(images)} images and {labels} labels"
            )

    def _check(self, images: Tensor) -> None:
        channels, axes = self.hierarchy.channels, len(self.hierarchy.image_size)
        if images.dim() != 2 + axes or images.shape[1] != channels or not images.is_floating_point():
            raise DataError(
                f"images must be floating point [B, {channels}, {_LETTERS[axes]}] in [0, 1]; "
                f"received {images.dtype} {list(images.shape)}"
            )
        if not images.numel():
            return
        low, high = float(images.min()), float(images.max())
        # NaN is neither at least 0 nor at most 1.
        if not (low >= 0 and high <= 1):
            raise DataError(f"images must be in [0, 1]; received values in [{low:.3g}, {high:.3g}]: rescale them")
