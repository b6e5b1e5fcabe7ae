"""An autoencoder and the priors of its levels, loaded together."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hvq.autoencoders import Autoencoder, AutoencoderDescription
from hvq.config import CodeSamplingConfig, Precision, RunConfig
from hvq.errors import CheckpointError, ConfigurationError
from hvq.hub import find_folder, publish
from hvq.level_names import in_level_order
from hvq.model_card import ModelCard
from hvq.model_folders import CONFIG, WEIGHTS
from hvq.pretrained import COMMIT
from hvq.priors import Prior, PriorDescription, SamplingOptions
from hvq.priors.guidance import vector_size
from hvq.storage.hierarchy_folder import write_hierarchy
from hvq.storage.models import encoder_hash, load_autoencoder, load_prior
from hvq.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Hierarchy:
    """A trained system, in evaluation mode.

    Attributes:
        autoencoder: the levels and the image decoder.
        priors: by level name, coarse to fine; fewer than levels while some are not trained.
        options: how each prior is sampled unless told otherwise.
        grids: (h, w) of each level for images of `image_size`; of signals and volumes, one length or three.
        image_size: (H, W) that it was trained on; (T) of signals, (X, Y, Z) of volumes.
        channels: C of the images.
        classes: names of the classes; empty without.

    It is saved as the parts of a run folder that it was loaded from, `autoencoder/` and `priors/<level>/`, and a model
    card. Here two levels, fresh ones, with a prior each:

    >>> import tempfile
    >>> from hvq import HierarchicalVQ
    >>> from hvq.autoencoders import convolutional_autoencoder
    >>> from hvq.priors import PixelCNNPrior
    >>> small = {"width": 4, "residual_width": 4, "codebook_size": 7, "code_dimension": 3}
    >>> levels = {"top": {"ratio": 2, **small}, "bottom": {"ratio": 4, **small}}
    >>> autoencoder = convolutional_autoencoder(channels=1, levels=levels, decoder={"width": 4}).eval()
    >>> priors = {
    ...     "top": PixelCNNPrior(codebook_size=7, width=4, layers=1).eval(),
    ...     "bottom": PixelCNNPrior(codebook_size=7, coarser={"top": 7}, width=4, layers=1).eval(),
    ... }
    >>> hierarchy = Hierarchy.of(autoencoder, priors, image_size=(16, 16))
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     hierarchy.save_pretrained(f"{scratch}/model")  # or push_to_hub("owner/name")
    ...     model = HierarchicalVQ.from_pretrained(f"{scratch}/model")  # or from_pretrained("owner/name")
    >>> images = torch.rand(3, 1, 16, 16)
    >>> codes = model.encode(images)
    >>> {name: tuple(code.shape) for name, code in codes.items()}
    {'top': (3, 2, 2), 'bottom': (3, 4, 4)}
    >>> model.decode(codes).shape, model.sample(2, seed=0).shape
    (torch.Size([3, 1, 16, 16]), torch.Size([2, 1, 16, 16]))
    """

    autoencoder: Autoencoder
    priors: dict[str, Prior]
    options: dict[str, SamplingOptions]
    grids: dict[str, tuple[int, ...]]
    image_size: tuple[int, ...]
    channels: int
    classes: tuple[str, ...]

    @property
    def vector_size(self) -> int:
        """V of the vectors that priors are conditioned on; 0 where none is."""
        return max(map(vector_size, self.priors.values()), default=0)

    @classmethod
    def of(
        cls,
        autoencoder: Autoencoder,
        priors: Mapping[str, Prior] | None = None,
        *,
        image_size: tuple[int, ...],
        classes: tuple[str, ...] = (),
        options: Mapping[str, SamplingOptions] | None = None,
    ) -> Hierarchy:
        """A system put together from its models.

        Args:
            autoencoder: that a configuration made (`build_autoencoder`, `convolutional_autoencoder`).
            priors: by level name, of some levels or all.
            image_size: (H, W) of the images; (T) of signals, (X, Y, Z) of volumes.
            classes: names of the classes that the priors know.
            options: how each prior is sampled unless told otherwise.

        Raises:
            ConfigurationError: where the autoencoder was put together by hand, or a prior is of other codes.
            DataError: where the size is smaller than the coarsest stride.
            HVQError: where a prior or options are of a level that there is not.
        """
        description = autoencoder.describe(image_size=image_size, classes=classes)
        given = dict(priors or {})
        ordered = in_level_order(given, [name for name in autoencoder.level_names if name in given], "priors")
        for name, prior in ordered.items():
            _require_codebook(name, prior.codebook_size, autoencoder.quantizers[name].codebook_size)
        chosen = {name: SamplingOptions() for name in ordered} | dict(options or {})
        return cls(
            autoencoder=autoencoder,
            priors=ordered,
            options=in_level_order(chosen, list(ordered), "options"),
            grids=autoencoder.grids(image_size),
            image_size=image_size,
            channels=description.autoencoder.channels,
            classes=classes,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        prior_precision: Precision | None = None,
    ) -> Hierarchy:
        """A trained system from a run folder or what `save_pretrained` wrote, or else from a repository of the hub.

        Args:
            name_or_folder: a folder of this machine, which needs neither network nor token; where there is none of that
                name, a repository `owner/name`.
            revision: branch, tag or commit of a repository.
            token: of a private repository.
            device: where the models shall be.
            prior_precision: of the priors' weights; float32 by default. The autoencoder's stay as they are: in another
                precision it would make other codes than those that the priors know.

        Raises:
            CheckpointError: where there is no such folder or repository, a file is damaged, or models do not belong
                together.
        """
        parts = ("autoencoder", "priors/*")
        files = [f"{part}/{name}" for part in parts for name in (CONFIG, WEIGHTS)]
        folder = find_folder(name_or_folder, files=files, revision=revision, token=token)
        return load_hierarchy(RunFolder(folder)).to(device, prior_precision=prior_precision)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        card: ModelCard | None = None,
        config: RunConfig | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the models and a model card, whole or not at all, in the layout of a run folder.

        A folder that an earlier call wrote is replaced, but for a README.md from whose end the mark was removed.

        Args:
            folder: to be made.
            card: what the model card says beyond the configuration.
            config: of the run, kept as `config.json`; of absolute paths only the last name.
            metrics: of the run, kept as `metrics.json`.

        Raises:
            CheckpointError: where a prior was trained on codes of another autoencoder than this one as it is now.
            ConfigurationError: where no configuration makes one of the models.
            StorageError: where the folder holds other things, or cannot be written.
        """
        self._save(Path(folder), Path(folder).name, card or ModelCard(), config, metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = COMMIT,
        card: ModelCard | None = None,
        config: RunConfig | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> str:
        """Publish what `save_pretrained` writes as a repository of the hub, which is made where there is none.

        Where to, and what it raises, is as for one model (`hvq.pretrained.PretrainedModule.push_to_hub`); what is
        written, as in `save_pretrained`. Returns the address.
        """
        return publish(
            lambda folder: self._save(folder, repo_id, card or ModelCard(), config, metrics),
            repo_id,
            what="hierarchy",
            private=private,
            token=token,
            message=commit_message,
        )

    def _save(
        self, path: Path, name: str, card: ModelCard, config: RunConfig | None, metrics: Mapping[str, Any] | None
    ) -> None:
        about, of_priors = self._describe()
        write_hierarchy(
            path,
            name=name,
            autoencoder=(self.autoencoder, about),
            priors={level: (self.priors[level], described) for level, described in of_priors.items()},
            card=card,
            config=config,
            metrics=metrics,
        )

    def _describe(self) -> tuple[AutoencoderDescription, dict[str, PriorDescription]]:
        about = self.autoencoder.describe(image_size=self.image_size, classes=self.classes)
        expected = encoder_hash(self.autoencoder)
        of_priors = {}
        for name, prior in self.priors.items():
            known = expected if prior.description is None else prior.description.encoder_hash
            if known != expected:
                raise CheckpointError(
                    f"the prior of level {name} was trained on codes of another autoencoder than this one as it is; "
                    "save the hierarchy with the autoencoder that it came with, in the precision that it was loaded in"
                )
            of_priors[name] = prior.describe(
                level=name,
                grid=self.grids[name],
                image_size=self.image_size,
                classes=self.classes,
                encoder_hash=expected,
                sampling=CodeSamplingConfig(**asdict(self.options[name])),
            )
        return about, of_priors

    def to(self, device: torch.device | str, *, prior_precision: Precision | None = None) -> Hierarchy:
        """Move all models to a device, in place.

        Args:
            device: where they run.
            prior_precision: of the priors' weights; bfloat16 halves what a step of sampling reads, and draws other
                samples. By default it is left as it is.
        """
        self.autoencoder.to(device)
        for prior in self.priors.values():
            prior.to(device=device, dtype=None if prior_precision is None else getattr(torch, prior_precision))
        return self

    def with_prior_precision(self, precision: Precision) -> Hierarchy:
        """The same system with its priors' weights in a precision; those that have another one are copied.

        What bfloat16 drops does not come back: begin with the priors as they were loaded.
        """
        dtype = getattr(torch, precision)
        priors = {
            name: prior if next(prior.parameters()).dtype == dtype else deepcopy(prior).to(dtype=dtype)
            for name, prior in self.priors.items()
        }
        return replace(self, priors=priors)


def load_hierarchy(run: RunFolder) -> Hierarchy:
    """All that a run folder holds: the autoencoder, and the priors that are there.

    Raises:
        CheckpointError: where the autoencoder is missing, a folder is damaged, or a prior belongs to another
            autoencoder.
    """
    autoencoder, description = load_autoencoder(run.autoencoder)
    expected, grids = encoder_hash(autoencoder), autoencoder.grids(description.image_size)
    priors: dict[str, Prior] = {}
    options: dict[str, SamplingOptions] = {}
    for name in autoencoder.level_names:
        if not run.prior(name).exists():
            continue
        priors[name], about = load_prior(run.prior(name))
        _require_encoder(about, expected, run.prior(name))
        _require_place(about, name, grids[name], run.prior(name))
        options[name] = SamplingOptions(**about.sampling.model_dump())
    return Hierarchy(
        autoencoder=autoencoder,
        priors=priors,
        options=options,
        grids=grids,
        image_size=description.image_size,
        channels=description.autoencoder.channels,
        classes=description.classes,
    )


def _require_codebook(level: str, received: int, expected: int) -> None:
    if received != expected:
        raise ConfigurationError(
            f"level {level} has codes of {expected} values, and its prior is of {received}; make the prior with "
            f"codebook_size={expected}"
        )


def _require_encoder(description: PriorDescription, expected: str, folder: Path) -> None:
    if description.encoder_hash != expected:
        raise CheckpointError(
            f"the prior in {folder} was trained on codes of another autoencoder; extract codes and train it again"
        )


def _require_place(description: PriorDescription, level: str, grid: tuple[int, ...], folder: Path) -> None:
    if (description.level, description.grid) != (level, grid):
        raise CheckpointError(
            f"the prior in {folder} must be of level {level} on a grid of {_text(grid)}, which images of the "
            f"autoencoder's size have; it is of level {description.level} on {_text(description.grid)}: extract codes "
            "at that size and train it again"
        )


def _text(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
