"""The fields of a run's configuration as text: what `--help` lists and what errors say was expected."""

from __future__ import annotations

import json
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hvq.config import RunConfig

Model = type[BaseModel]

_PLAIN_TYPES = {bool: "true | false", int: "integer", float: "number", str: "text", types.NoneType: "null"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def models_of(annotation: Any) -> tuple[Model, ...]:
    """The models that a value so annotated is one of: several for a union of kinds, none for a plain value.

    >>> from hvq.config import LevelConfig
    >>> from hvq.config_data import DataConfig
    >>> [model.__name__ for model in models_of(DataConfig)][:4]
    ['DigitsConfig', 'PhotosConfig', 'FolderConfig', 'ArrayConfig']
    >>> models_of(dict[str, LevelConfig])
    ()
    """
    if get_origin(annotation) is Annotated:
        return models_of(get_args(annotation)[0])
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    models = tuple(member for member in members if isinstance(member, type) and issubclass(member, BaseModel))
    return models if len(models) == len(members) else ()


def entries_of(annotation: Any) -> Any | None:
    """How the values of a mapping by name are annotated; None for what is not a mapping.

    >>> entries_of(dict[str, int]), entries_of(int)
    (<class 'int'>, None)
    """
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def kind_of(model: Model) -> str | None:
    """The value of `kind` by which a union knows this model; None for a model without kinds."""
    field = model.model_fields.get("kind")
    return str(field.default) if field else None


def default_kind(field: FieldInfo) -> str | None:
    """The kind of a field's default value; None for a field that has no default, or no kinds."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return getattr(value, "kind", None)


def each(field: FieldInfo) -> str:
    """What the names in a mapping by name are of: `level`, unless the field says otherwise."""
    extra = field.json_schema_extra
    return str(extra.get("each", "level")) if isinstance(extra, dict) else "level"


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _bounds(metadata: Sequence[Any]) -> str:
    """The limits that pydantic's annotations set, such as " > 0"."""
    flat = [inner for item in metadata for inner in (item.metadata if isinstance(item, FieldInfo) else [item])]
    limits = [
        f"{sign} {getattr(item, name):g}"
        for item in flat
        for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    ]
    return f" {' and '.join(limits)}" if limits else ""


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What may stand in a field, in the notation of YAML.

    Args:
        annotation: a type as the configuration models use them.
        metadata: pydantic's constraints beside it.

    >>> from pydantic import PositiveInt
    >>> type_text(tuple[PositiveInt, PositiveInt]), type_text(Literal["no", "bf16"] | None)
    ('[integer > 0, integer > 0]', 'no | bf16 | null')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if models := models_of(annotation):
        kinds = [kind for model in models if (kind := kind_of(model))]
        return "mapping of fields" + (f" with kind: {' | '.join(kinds)}" if kinds else "")
    if origin is Annotated:
        return type_text(arguments[0], [*metadata, *arguments[1:]])
    if _is_union(annotation):
        return " | ".join(type_text(member) for member in arguments)
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin is tuple:
        return f"[{', '.join('...' if member is Ellipsis else type_text(member) for member in arguments)}]"
    if origin is dict:
        return "mapping by name, not empty" if metadata else "mapping by name"
    return _PLAIN_TYPES[annotation] + _bounds(metadata)


@dataclass(frozen=True)
class FieldDescription:
    """One field that a file or an override can set.

    Attributes:
        path: its dotted path, with `<level>` where the name of a level goes, `<term>` where that of a loss does.
        type: what may stand there, in the notation of YAML.
        default: its default in the notation of YAML; None where it is required.
        doc: what it means.
        condition: the kinds that have this field, such as "data.kind=photos"; empty where all have it.
    """

    path: str
    type: str
    default: str | None
    doc: str
    condition: str = ""


def _below_kinds(path: str, kinds: dict[str | None, Model]) -> Iterator[FieldDescription]:
    """The fields of each kind; what all kinds have in common stands once and without a condition."""
    having: dict[FieldDescription, list[str]] = {}
    for kind, model in kinds.items():
        for description in describe_fields(model, f"{path}."):
            having.setdefault(description, []).append(str(kind))
    for description, names in having.items():
        own = [] if len(names) == len(kinds) else [f"{path}.kind={' | '.join(names)}"]
        yield replace(description, condition="; ".join([*own, *[description.condition] * bool(description.condition)]))


def _section(path: str, field: FieldInfo) -> Iterator[FieldDescription]:
    """The fields below one that holds a model, one of several kinds, or a mapping of these by name."""
    entries = entries_of(field.annotation)
    inner, models = (f"{path}.<{each(field)}>", models_of(entries)) if entries else (path, models_of(field.annotation))
    kinds = {kind_of(model): model for model in models}
    named = [kind for kind in kinds if kind is not None]
    if named:
        docs = [field.description, *(f"{kind}: {model.__doc__}" for kind, model in kinds.items())]
        doc = "; ".join(text.rstrip(".") for text in docs if text)
        default = default_kind(field) or (named[0] if len(named) == 1 else None)
        yield FieldDescription(f"{inner}.kind", " | ".join(named), default, doc)
    yield from _below_kinds(inner, kinds)


def _default_text(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return value if isinstance(value, str) else json.dumps(value)


def describe_fields(model: Model = RunConfig, prefix: str = "") -> list[FieldDescription]:
    """Every field of a configuration, through levels, priors and the kinds of each union.

    Args:
        model: the configuration.
        prefix: dotted path of the model itself, with a dot at its end.

    >>> next(field for field in describe_fields() if field.path == "data.crops_per_photo")
    FieldDescription(path='data.crops_per_photo', type='integer > 0', default='64', \
doc='crops of each photograph that make up an epoch', condition='data.kind=photos')
    """
    descriptions: list[FieldDescription] = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if models_of(field.annotation) or entries_of(field.annotation):
            descriptions += _section(path, field)
        elif name != "kind":
            text = type_text(field.annotation, field.metadata)
            descriptions.append(FieldDescription(path, text, _default_text(field), field.description or ""))
    return descriptions


def field_help(width: int = 100) -> str:
    """Every field with its default, type and meaning, as the recipes' `--help` prints them.

    Args:
        width: columns of the terminal.

    >>> print("\\n".join(field_help().splitlines()[:2]))
      seed=0  (integer >= 0)
          of everything that is random
    """
    lines: list[str] = []
    for field in describe_fields():
        value = "..." if field.default is None else field.default
        notes = [field.type, *["required"] * (field.default is None), *[field.condition] * bool(field.condition)]
        lines.append(f"  {field.path}={value}  ({'; '.join(notes)})")
        lines += textwrap.wrap(field.doc, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
