"""What quantizers, autoencoders and priors have in common: they are saved as a folder, loaded from it, and published.

This room knows of a `state_dict` and of a description, which becomes `config.json`; what the description of a model is,
and how a model is made of one, its own room says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from hvq.config_base import FrozenModel
from hvq.errors import CheckpointError, ConfigurationError
from hvq.files import read_tensors
from hvq.hub import find_folder, publish
from hvq.model_card import ModelCard, write_card
from hvq.model_folders import (
    CARD,
    CONFIG,
    PICTURES,
    WEIGHTS,
    first_fault,
    read_description,
    require_replaceable,
    write_model,
)
from hvq.model_weights import load_widened, state_fault

Description = TypeVar("Description", bound=FrozenModel)
COMMIT = "Weights, configuration and card"


class PretrainedModule(nn.Module, ABC, Generic[Description]):
    """A module that is saved as a folder of `model.safetensors`, `config.json` and a model card, and loaded from it.

    Folders and repositories hold numbers and text alone: nothing in them is unpickled or run.
    """

    # What it is, in messages and on cards.
    kind_of_model: ClassVar[str]
    description_type: ClassVar[type[FrozenModel]]
    # What the folder that it was loaded from says of it.
    description: Description | None = None

    # --- what a kind of model defines ---

    @abstractmethod
    def architecture(self) -> Mapping[str, Any]:
        """The fields of its description that the module itself tells.

        Raises:
            ConfigurationError: where no configuration makes such a module.
        """

    @classmethod
    @abstractmethod
    def from_description(cls, description: Description) -> PretrainedModule[Description]:
        """A module, with fresh weights."""

    @abstractmethod
    def usage(self, name: str) -> str:
        """Python for the model card: load it, and do something with it."""

    def usual_fields(self) -> Mapping[str, Any]:
        """Fields that nobody has to give; none by default."""
        return {}

    def completed(self, description: Description) -> Description:
        """The description with what the module and given fields tell together; as it is by default."""
        return description

    # --- what all share ---

    def describe(self, **about: Any) -> Description:
        """Its `config.json`.

        Args:
            about: fields of the description that the module cannot tell; those of the folder it was loaded from by
                default.

        Raises:
            ConfigurationError: where a field is missing, unknown or malformed, or no configuration makes such a module.
        """
        fields, own = self.description_type.model_fields, self.architecture()
        takes = [name for name in fields if name not in own and name != "format_version"]
        if unknown := [name for name in about if name not in takes]:
            raise ConfigurationError(
                f"{self._article()} is saved with {', '.join(takes) or 'nothing beside it'}; received {unknown[0]}"
            )
        loaded = self.description
        before = self.usual_fields() if loaded is None else {name: getattr(loaded, name) for name in takes}
        given = {**before, **about}
        if missing := [name for name in takes if fields[name].is_required() and name not in given]:
            raise ConfigurationError(
                f"{self._article()} is saved with {', '.join(missing)}, which it does not know; "
                f"pass {missing[0]}=... to save_pretrained"
            )
        try:
            described: Any = self.description_type.model_validate({**given, **own})
        except ValidationError as error:
            raise ConfigurationError(f"{self._article()} cannot be described: {first_fault(error)}") from None
        described = self.completed(described)
        self._require_loadable(described)
        return described

    def save_pretrained(self, folder: str | Path, *, card: ModelCard | None = None, **about: Any) -> None:
        """Write `model.safetensors`, `config.json` and a model card, whole or not at all.

        Weights are written in the precision that they have. A folder that an earlier call wrote is replaced, but for a
        README.md from whose end the mark was removed.

        Args:
            folder: to be made.
            card: what the model card says beyond the configuration.
            about: fields of `config.json` that the module cannot tell, such as the `image_size` of an autoencoder; not
                needed where it was loaded.

        Raises:
            ConfigurationError: where such a field is missing, or no configuration makes this module.
            StorageError: where the folder holds other things, or cannot be written.
        """
        self._save(Path(folder), Path(folder).name, card, about)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = COMMIT,
        card: ModelCard | None = None,
        **about: Any,
    ) -> str:
        """Publish what `save_pretrained` writes as a repository of the hub, which is made where there is none.

        Args:
            repo_id: `owner/name`.
            private: whether others cannot see a repository that is made.
            token: with leave to write; by default the one that `hf auth login` has left.
            commit_message: of the upload.
            card: as in `save_pretrained`.
            about: likewise.

        Returns:
            The address.

        Raises:
            ConfigurationError: as in `save_pretrained`.
            CheckpointError: where `huggingface_hub` is not installed, or the hub refuses or cannot be reached.
        """
        return publish(
            lambda folder: self._save(folder, repo_id, card, about),
            repo_id,
            what=self.kind_of_model,
            private=private,
            token=token,
            message=commit_message,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A model in evaluation mode, from a folder, or else from a repository of the hub.

        Args:
            name_or_folder: a folder of this machine, which needs neither network nor token; where there is none of that
                name, a repository `owner/name`.
            subfolder: where in it the model lies, such as `priors/top` of a whole hierarchy.
            revision: branch, tag or commit of a repository.
            token: of a private repository.
            device: where it shall be, wherever it was when it was saved.
            dtype: of its weights, codebooks apart; by default float32, or float64 where it was saved so, which hold
                whatever was saved exactly.

        Raises:
            CheckpointError: where there is no such folder or repository, it holds another kind of model, a file is
                damaged, or weights and configuration do not belong together; which tensor, and the likely cause.
        """
        place = f"{subfolder.strip('/')}/" if subfolder else ""
        files = [f"{place}{name}" for name in (CONFIG, WEIGHTS)]
        folder = find_folder(name_or_folder, files=files, revision=revision, token=token) / subfolder
        return cls._load(folder).to(device=device, dtype=dtype)

    @classmethod
    def _load(cls, folder: Path) -> Self:
        what = cls.kind_of_model
        description: Any = read_description(folder, cls.description_type, what)
        try:
            model = cls.from_description(description)
        except ConfigurationError as error:
            raise CheckpointError(f"{what} configuration in {folder}: {error}") from None
        if not isinstance(model, cls):
            raise CheckpointError(
                f"{folder} holds a {type(model).__name__}, not a {cls.__name__}; load it by that class"
            )
        tensors, _ = read_tensors(folder / WEIGHTS, f"{what} weights")
        load_widened(model, tensors, folder, what)
        model.description = description
        return model.eval()

    def _save(self, folder: Path, name: str, card: ModelCard | None, about: Mapping[str, Any]) -> None:
        description = self.describe(**about)
        require_replaceable(folder, (WEIGHTS, CONFIG, CARD, PICTURES))
        shown = (card or ModelCard()).with_default(title=name, summary=self._summary())

        def also(partial: Path) -> None:
            configuration = description.model_dump(mode="json")
            write_card(partial, shown, configuration=configuration, usage=self.usage(name), earlier=folder)

        write_model(folder, self.state_dict(), description, also)

    def _require_loadable(self, description: Description) -> None:
        """Refuse what would not load again: parts may have been replaced since the module was built."""
        # No tensor takes memory there.
        with torch.device("meta"):
            built = self.from_description(description)
        if fault := state_fault(built, self.state_dict()):
            raise ConfigurationError(
                f"{self._article()} as described would not load again, since this one {fault}: a part was replaced; "
                "save its state_dict with safetensors"
            )

    def _summary(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return f"{self._article().capitalize()} of hierarchical discrete latents, {numbers:,} parameters."

    def _article(self) -> str:
        return f"{'an' if self.kind_of_model[0] in 'aeiou' else 'a'} {self.kind_of_model}"


class KeepsArguments:
    """A class whose instances know the keyword arguments they were made with, which is what configures them."""

    arguments: dict[str, Any]

    def __new__(cls, *words: Any, **arguments: Any) -> Self:
        """Called before the constructor, with its arguments."""
        made = super().__new__(cls)
        made.__dict__["arguments"] = arguments
        return made
