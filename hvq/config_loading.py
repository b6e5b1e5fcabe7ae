"""A run's configuration from a file and overrides, with errors that a person can act on."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hvq.config import RunConfig
from hvq.config_fields import Model, default_kind, describe_fields, entries_of, kind_of, models_of, type_text
from hvq.errors import ConfigurationError

AnyModel = TypeVar("AnyModel", bound=BaseModel)

# --- text to plain values -------------------------------------------------------------------------------------------


_OWN_OR_NONE = ("bool", "float", "timestamp")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with the plain values of YAML 1.2: `no` is text, `3e-4` a number, dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012, the base class declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in _OWN_OR_NONE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_TRUTH = re.compile("^(true|True|TRUE|false|False|FALSE)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUTH, list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are unique; at once rather than in two steps, so that it cannot hold itself."""
    keys = [key.value for key, _ in node.value]
    for position, key in enumerate(keys):
        if key in keys[:position]:
            mark = node.value[position][0].start_mark
            raise yaml.constructor.ConstructorError(None, None, f"{key} stands here a second time", mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _parse_yaml(text: str, source: str) -> Any:
    """Plain values from YAML text; `source` is what it is, for the error."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"{source}{line} is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{source} is not valid YAML: {error}") from None


def _unshared(value: Any) -> Any:
    """The same mappings, none standing in two places, as YAML's anchors make them."""
    return {name: _unshared(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"there is no configuration file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration file {path} cannot be read: {error}") from None
    values = _parse_yaml(text, f"configuration file {path}")
    if not isinstance(values, dict | None):
        raise ConfigurationError(f"configuration file {path} must be a mapping of fields; it is {_shown(values)}")
    return _unshared(values or {})


# --- overrides ------------------------------------------------------------------------------------------------------


def _model_for(annotation: Any, values: Mapping[str, Any]) -> Model | None:
    """The model that describes `values`: the only one, or the one of their kind."""
    models = models_of(annotation)
    if len(models) > 1:
        return next((model for model in models if kind_of(model) == values.get("kind")), None)
    return models[0] if models else None


def _annotation_below(annotation: Any, values: Mapping[str, Any], name: str) -> Any:
    """How what stands under `name` is annotated; None for what no model knows."""
    model = _model_for(annotation, values)
    if model is None:
        return entries_of(annotation)
    return model.model_fields[name].annotation if name in model.model_fields else None


def _written_out(field: FieldInfo, value: Any) -> Any:
    """What stands in a field, in the form that its model takes where a person may write a shorter one."""
    for item in field.metadata:
        if isinstance(item, BeforeValidator):
            value = cast(Callable[[Any], Any], item.func)(value)
    return value


def _write_out(values: Any, annotation: Any) -> None:
    """Write short forms out, and the default kind into each mapping of several kinds that names none."""
    if not isinstance(values, dict):
        return
    model = _model_for(annotation, values)
    for name in values:
        field = model.model_fields.get(name) if model else None
        if field:
            values[name] = _written_out(field, values[name])
        inner = values[name]
        if field and isinstance(inner, dict) and len(models_of(field.annotation)) > 1 and default_kind(field):
            inner.setdefault("kind", default_kind(field))
        _write_out(inner, _annotation_below(annotation, values, name))


def _default_entries(annotation: Any, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a mapping by name holds where it is not given, as plain values; empty for anything else."""
    model = _model_for(annotation, values)
    field = model.model_fields.get(name) if model else None
    if field is None or field.is_required() or entries_of(field.annotation) is None:
        return {}
    default = field.get_default(call_default_factory=True)
    return {key: entry.model_dump(mode="json") for key, entry in default.items()}


@dataclass(frozen=True)
class _Override:
    """`value` to be set at `path`."""

    path: tuple[str, ...]
    value: Any

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


def _parse_override(text: str) -> _Override:
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigurationError(
            f"an override must look like autoencoder.levels.top.ratio=4; received {text!r} (--help lists all fields)"
        )
    return _Override(tuple(path.split(".")), _parse_yaml(value, f"the value of override {text!r}"))


def _drop_other_kind(values: dict[str, Any], annotation: Any, override: _Override) -> list[str]:
    """Remove the fields that only the old kind has; returns a note where there were any."""
    old = _model_for(annotation, values)
    new = _model_for(annotation, {"kind": override.value})
    if old is None or new is None or old is new:
        return []
    dropped = [name for name in values if name in old.model_fields and name not in new.model_fields]
    for name in dropped:
        del values[name]
    fields = ", ".join(f"{override.dotted.removesuffix('kind')}{name}" for name in dropped)
    return [f"{override.dotted}={override.value} drops {fields}, which only kind {kind_of(old)} has"] if dropped else []


def _apply(values: dict[str, Any], override: _Override) -> list[str]:
    """Set one value in place, and return notes of what a person might not expect."""
    annotation: Any = RunConfig
    notes: list[str] = []
    for depth, name in enumerate(override.path[:-1]):
        if override.path[:depth] == ("autoencoder", "levels") and values and name not in values:
            notes.append(f"override {override.dotted} adds level {name} to {', '.join(map(str, values))}")
        if name not in values:
            values[name] = _default_entries(annotation, values, name)
        annotation, inner = _annotation_below(annotation, values, name), values[name]
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            above = ".".join(override.path[: depth + 1])
            raise ConfigurationError(f"override {override.dotted} needs a mapping at {above}; it is {_shown(inner)}")
        values = inner
    if override.path[-1] == "kind":
        notes += _drop_other_kind(values, annotation, override)
    values[override.path[-1]] = override.value
    return notes


def _merge(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply overrides in place; kinds first, so that it does not matter where they stand among the others."""
    parsed = sorted(map(_parse_override, overrides), key=lambda override: override.path[-1] != "kind")
    notes: list[str] = []
    for override in parsed:
        _write_out(values, RunConfig)
        notes += _apply(values, override)
    _write_out(values, RunConfig)
    return notes


# --- errors ---------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(name: str, choices: Sequence[str], prefix: str = "") -> str:
    """A suggestion to append to a sentence, or nothing where no choice is near."""
    near = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _unknown_field(path: str, name: str, model: Model, models: Sequence[Model], root: Model) -> str:
    """The sentence about a field that its model does not have, though another kind or another place may."""
    unknown = f"{_below(path, name)} is not a field of the configuration"
    others = [str(kind_of(other)) for other in models if name in other.model_fields]
    if others:
        owners, kind = " or ".join(others), kind_of(model)
        return f"{_below(path, name)} is a field of kind {owners}, but {_below(path, 'kind')} is {kind}"
    if suggestion := _nearest(name, list(model.model_fields), _below(path, "")):
        return unknown + suggestion
    elsewhere = dict.fromkeys(field.path for field in describe_fields(root) if field.path.split(".")[-1] == name)
    if elsewhere:
        return f"{unknown}; did you mean {' or '.join(elsewhere)}?"
    return f"{unknown}; the fields there are {', '.join(model.model_fields)}"


def _unknown_fields(values: Mapping[str, Any], annotation: Any, root: Model, path: str = "") -> Iterator[str]:
    """A sentence for each field that no model knows, at any depth."""
    model = _model_for(annotation, values)
    for name, inner in values.items():
        if model is not None and name not in model.model_fields:
            yield _unknown_field(path, str(name), model, models_of(annotation), root)
        elif isinstance(inner, dict):
            yield from _unknown_fields(inner, _annotation_below(annotation, values, name), root, _below(path, name))


@dataclass(frozen=True)
class _Place:
    """A place in the configuration: its dotted path, what is expected there, and what the field means."""

    path: str
    expected: str
    doc: str


def _locate(location: Sequence[str | int], root: Model) -> _Place:
    """The place that an error of pydantic is about."""
    path, doc = "", ""
    annotation: Any = root
    metadata: Sequence[Any] = ()
    for step in location:
        if step == "[key]":
            break
        models = models_of(annotation)
        if len(models) > 1:  # pydantic names the kind as a step of its own
            annotation = next(model for model in models if kind_of(model) == step)
        elif models:
            field = models[0].model_fields[str(step)]
            path, doc = _below(path, step), field.description or ""
            annotation, metadata = field.annotation, field.metadata
        elif get_origin(annotation) is tuple:
            members = get_args(annotation)
            path, annotation = f"{path}[{step}]", members[0 if Ellipsis in members else int(step)]
            metadata = ()
        elif entries_of(annotation):
            path, annotation, metadata = _below(path, step), entries_of(annotation), ()
    return _Place(path, type_text(annotation, metadata), doc)


def _sentence(error: ErrorDetails, root: Model) -> str:
    """One of pydantic's errors as a person reads it."""
    place = _locate(error["loc"], root)
    meaning = f" ({place.doc})" if place.doc else ""
    if error["type"] == "value_error":
        return f"{place.path}: {error['ctx']['error']}" if place.path else str(error["ctx"]["error"])
    if error["loc"][-1] == "[key]":
        return f"{place.path}: expected a name of letters, digits, _ and -, received {_shown(error['input'])}"
    if error["type"] == "missing":
        return f"{place.path} is missing; set it to {place.expected}{meaning}"
    path, expected, received = place.path, place.expected, error["input"]
    if error["type"] == "union_tag_invalid":
        path, received = f"{path}.kind", received["kind"]
        expected = expected.rsplit(": ", 1)[1]
    suggestion = _nearest(received, expected.split(" | ")) if isinstance(received, str) else ""
    return f"{path}: expected {expected}, received {_shown(received)}{meaning}{suggestion}"


def validated(model: type[AnyModel], values: Mapping[str, Any]) -> AnyModel:
    """The configuration that plain values make, or an error that a person can act on.

    Args:
        model: any of the models of `hvq.config`.
        values: what a file or a caller gave.

    Raises:
        ConfigurationError: with one line for each fault, naming the field, what was expected and what came.

    >>> from hvq.config import DecoderConfig
    >>> validated(DecoderConfig, {"width": -1})
    Traceback (most recent call last):
    hvq.errors.ConfigurationError: width: expected integer > 0, received -1 (channels of its features)
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        others = [_sentence(fault, model) for fault in faults if fault["type"] != "extra_forbidden"]
        raise ConfigurationError("\n".join([*_unknown_fields(values, model, model), *others])) from None


# --- the whole ------------------------------------------------------------------------------------------------------


def load_run_config(
    path: Path | None = None, overrides: Sequence[str] = (), *, say: Callable[[str], None] = print
) -> RunConfig:
    """The configuration of a run, from a file, overrides of single fields, and defaults for the rest.

    Args:
        path: YAML or JSON file, such as a preset or the `config.json` of a run folder; None starts from nothing.
        overrides: such as `autoencoder.levels.top.ratio=4` or `data.size=[64, 64]`, values in the notation of YAML.
            Overrides of a `kind` are applied first and drop the fields that only the old kind has.
        say: is given a sentence for each thing that an override does beyond setting its field.

    Raises:
        ConfigurationError: with one line for each fault, naming the field, what was expected and what came.

    >>> config = load_run_config(None, ["autoencoder.levels.top.ratio=4", "autoencoder.channels=1", "seed=7"])
    >>> config.seed, config.autoencoder.levels["top"].codebook_size
    (7, 512)
    >>> load_run_config(None, ["autoencoder.levels.top.ratoi=4"])
    Traceback (most recent call last):
    hvq.errors.ConfigurationError: autoencoder.levels.top.ratoi is not a field of the configuration; \
did you mean autoencoder.levels.top.ratio?
    autoencoder.levels.top.ratio is missing; set it to integer > 0 (size of ...)
    """
    return run_config({} if path is None else _read_mapping(path), overrides, say=say)


def run_config(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, say: Callable[[str], None] = print
) -> RunConfig:
    """`load_run_config`, of plain values in place of a file; they are left as they are."""
    merged = deepcopy(dict(values))
    notes = _merge(merged, overrides)
    try:
        config = validated(RunConfig, merged)
    except ConfigurationError as error:
        raise ConfigurationError("\n".join([str(error), *notes])) from None
    for note in notes:
        say(note)
    return config
