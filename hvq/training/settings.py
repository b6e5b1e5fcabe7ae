"""What two trainings must share for one to go on where the other was stopped: their settings, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hvq.config import AutoencoderConfig, AutoencoderTrainingConfig, PriorStageConfig
from hvq.config_data import DataConfig

# Fields that may differ from the run that is resumed: they change what is logged, or when training ends, but not what
# is computed on the way.
_FREE_IN_TRAINING = ("checkpoint_every", "keep_checkpoints", "log_every", "skipped_steps")
# By path, "*" for any one name: names that users give, of levels and of terms, may be those of fields.
_FREE_FIELDS = {
    ("data", "workers"),
    *(("autoencoder_training", name) for name in _FREE_IN_TRAINING),
    # A folder, which may have moved: what lies in it is compared.
    ("autoencoder_training", "reconstruction", "*", "extractor"),
    *(("prior", "training", name) for name in (*_FREE_IN_TRAINING, "patience")),
    ("prior", "sampling"),
}
_PARTS: dict[str, TypeAdapter[Any]] = {
    "data": TypeAdapter(DataConfig),
    "autoencoder": TypeAdapter(AutoencoderConfig),
    "autoencoder_training": TypeAdapter(AutoencoderTrainingConfig),
    "prior": TypeAdapter(PriorStageConfig),
}


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the fields that may differ, and with the defaults of fields that came after they were written.

    Args:
        settings: plain values; under the names of parts of the configuration, what these hold.

    >>> known = comparable({"seed": 3, "data": {"kind": "digits", "workers": 5}})
    >>> known["seed"], known["data"]["channels"], "workers" in known["data"]
    (3, 1, False)
    """
    return {name: _without_free(_completed(name, value), (name,)) for name, value in settings.items()}


def first_difference(saved: Any, wanted: Any, path: str = "") -> str | None:
    """Where two trees of plain values differ first, in words; None where they do not.

    >>> first_difference({"seed": 3, "data": {"size": [5, 7]}}, {"seed": 3, "data": {"size": [5, 5]}})
    'data.size is [5, 5], and was [5, 7]'
    """
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        for key in [*wanted, *(key for key in saved if key not in wanted)]:
            difference = first_difference(saved.get(key), wanted.get(key), f"{path}.{key}" if path else key)
            if difference is not None:
                return difference
        return None
    return None if saved == wanted else f"{path or 'settings'} is {wanted}, and was {saved}"


def _completed(name: str, value: Any) -> Any:
    """A part of the configuration with every field; what this version cannot read stays as it is, and will differ."""
    if name not in _PARTS:
        return value
    try:
        return _PARTS[name].dump_python(_PARTS[name].validate_python(value), mode="json")
    except ValidationError:
        return value


def _without_free(value: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(value, Mapping):
        return value
    paths = {key: (*path, key) for key in value}
    return {key: _without_free(item, paths[key]) for key, item in value.items() if not _is_free(paths[key])}


def _is_free(path: tuple[str, ...]) -> bool:
    return any(
        len(path) == len(free) and all(part in ("*", name) for name, part in zip(path, free, strict=True))
        for free in _FREE_FIELDS
    )
