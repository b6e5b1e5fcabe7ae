"""The folder of a whole hierarchy, in the layout of a run folder: its models, and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvq.autoencoders import Autoencoder, AutoencoderDescription
from hvq.config import RunConfig
from hvq.files import write_folder, write_json
from hvq.model_card import ModelCard, write_card
from hvq.model_folders import CARD, PICTURES, require_replaceable, write_model_files
from hvq.priors import Prior, PriorDescription
from hvq.storage.run_folder import RunFolder

TASK = "unconditional-image-generation"
"""What the hub calls it."""


def write_hierarchy(
    path: Path,
    *,
    name: str,
    autoencoder: tuple[Autoencoder, AutoencoderDescription],
    priors: Mapping[str, tuple[Prior, PriorDescription]],
    card: ModelCard,
    config: RunConfig | None,
    metrics: Mapping[str, Any] | None,
) -> None:
    """Write the folder, whole or not at all; one that an earlier call wrote is replaced.

    Args:
        path: of the folder.
        name: by which it will be loaded.
        autoencoder: with its description.
        priors: by level name, with their descriptions.
        card: what the model card says beyond the configuration.
        config: of the run, kept as `config.json`; of absolute paths only the last name.
        metrics: of the run, kept as `metrics.json`.

    Raises:
        StorageError: where the folder holds other things, or cannot be written.
    """
    model, about = autoencoder
    names = RunFolder(path)
    own = (names.autoencoder, names.path / "priors", names.config_file, names.metrics_file)
    require_replaceable(path, (*(place.name for place in own), PICTURES, CARD))
    complete = priors.keys() == set(model.level_names)
    configuration = {
        "autoencoder": about.model_dump(mode="json"),
        "priors": {level: description.model_dump(mode="json") for level, (_, description) in priors.items()},
    }

    def write(partial: Path) -> None:
        inside = RunFolder(partial)
        write_model_files(inside.autoencoder, model.state_dict(), about)
        for level, (prior, description) in priors.items():
            write_model_files(inside.prior(level), prior.state_dict(), description)
        if config is not None:
            write_json(inside.config_file, _without_places(config.model_dump(mode="json")))
        if metrics is not None:
            write_json(inside.metrics_file, metrics)
        write_card(
            partial,
            card.with_default(title=name),
            configuration=configuration,
            usage=_usage(name, sampled=complete, classes=len(about.classes)),
            task=TASK if complete else "",
            earlier=path,
        )

    write_folder(path, write)


def _usage(name: str, *, sampled: bool, classes: int) -> str:
    """Python for the model card."""
    lines = ["from hvq import HierarchicalVQ", "", f'model = HierarchicalVQ.from_pretrained("{name}")']
    if sampled:
        labels = f"{list(range(min(classes, 4)))}" if classes else "4"
        what = "one image of each of these classes" if classes else "images"
        lines.append(f"images = model.sample({labels}, seed=0)  # {what}: float [B, C, H, W] in [0, 1]")
    else:
        lines.append("images = ...  # float [B, C, H, W] in [0, 1]")
    lines += [
        "codes = model.encode(images)  # a tensor of integers for each level, coarse to fine",
        "rebuilt = model.decode(codes)",
    ]
    return "\n".join(lines)


def _without_places(value: Any) -> Any:
    """Plain values, in which absolute paths are but names: where files lie on the machine of one is nobody's matter."""
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
