from __future__ import annotations

import json
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, Field, PositiveInt, TypeAdapter, ValidationError

from hvq.config import FrozenModel, RunConfig
from hvq.config_data import DataConfig, DigitsConfig
from hvq.config_fields import FieldDescription, default_kind, describe_fields, field_help, kind_of, models_of, type_text

FIELDS = {(field.path, field.condition): field for field in describe_fields()}


class _Small(FrozenModel):
    """A small one."""

    kind: Literal["small"] = "small"
    shared: int = Field(3, description="in both")
    size: PositiveInt = Field(description="of the small one")


class _Large(FrozenModel):
    """A large one."""

    kind: Literal["large"] = "large"
    shared: int = Field(3, description="in both")
    size: PositiveInt = Field(1000, description="of the large one")


class _Outer(FrozenModel):
    thing: Annotated[_Small | _Large, Field(discriminator="kind", description="one of two")]
    named: dict[str, _Small | _Large] = Field(default_factory=dict, description="several")


def test_fields_of_every_kind_stand_with_their_kind() -> None:
    assert describe_fields(_Outer)[:4] == [
        FieldDescription("thing.kind", "small | large", None, "one of two; small: A small one; large: A large one"),
        FieldDescription("thing.shared", "integer", "3", "in both"),
        FieldDescription("thing.size", "integer > 0", None, "of the small one", "thing.kind=small"),
        FieldDescription("thing.size", "integer > 0", "1000", "of the large one", "thing.kind=large"),
    ]
    assert [field.path for field in describe_fields(_Outer)[4:6]] == ["named.<level>.kind", "named.<level>.shared"]


def test_levels_priors_and_data_are_all_listed() -> None:
    assert FIELDS["autoencoder.levels.<level>.ratio", ""].default is None
    assert (
        FIELDS["autoencoder.levels.<level>.quantizer.decay", "autoencoder.levels.<level>.quantizer.kind=vector"].default
        == "0.99"
    )
    assert FIELDS["priors.<level>.model.heads", "priors.<level>.model.kind=transformer"].type == "integer > 0"
    assert FIELDS["priors.<level>.sampling.top_k", ""].default == "null"
    assert FIELDS["autoencoder_training.reconstruction.<term>.kind", ""].type.startswith("mse | l1")
    assert FIELDS["autoencoder_training.reconstruction.<term>.weight", ""].default == "1.0"
    assert FIELDS["data.kind", ""].default == "digits"
    assert FIELDS["data.path", "data.kind=folder"].default is None
    assert FIELDS["data.crops_per_photo", "data.kind=photos"].default == "64"


def _leaves(model: type[BaseModel]) -> set[str]:
    """Names of all plain fields below a model, found by pydantic's own JSON schema."""
    schema = model.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    return {name for part in parts for name, field in part["properties"].items() if "$ref" not in json.dumps(field)}


def test_no_field_is_left_out() -> None:
    assert {path.rsplit(".", 1)[-1] for path, _ in FIELDS} == _leaves(RunConfig)


def test_defaults_are_yaml_that_the_field_accepts() -> None:
    adapters = {kind_of(model): model for model in models_of(DataConfig)}
    own = [field for field in describe_fields(DigitsConfig) if field.default is not None and "." not in field.path]
    assert len(own) == 3
    for field in own:
        value = yaml.safe_load(str(field.default))
        assert getattr(DigitsConfig.model_validate({field.path: value}), field.path) == getattr(
            DigitsConfig(), field.path
        )
    assert list(adapters) == [
        *("digits", "photos", "folder", "array", "shards", "hub"),
        *("waves", "tones", "volumes"),
    ]


@pytest.mark.parametrize(
    ("annotation", "text", "good", "bad"),
    [
        (PositiveInt, "integer > 0", 1, 0),
        (Annotated[float, Field(gt=0.0, le=1.0)], "number > 0 and <= 1", 1.0, 0.0),
        (tuple[PositiveInt, PositiveInt], "[integer > 0, integer > 0]", [2, 3], [2]),
        (Literal[1, 3], "1 | 3", 3, 2),
        (PositiveInt | None, "integer > 0 | null", None, "x"),
        (bool, "true | false", True, "x"),
        (str, "text", "x", 3),
    ],
)
def test_types_are_named_as_pydantic_checks_them(annotation: object, text: str, good: object, bad: object) -> None:
    assert type_text(annotation) == text
    TypeAdapter(annotation).validate_python(good)
    with pytest.raises(ValidationError):
        TypeAdapter(annotation).validate_python(bad)


def test_default_kind_is_that_of_the_default_value() -> None:
    assert default_kind(RunConfig.model_fields["data"]) == "digits"
    assert default_kind(RunConfig.model_fields["seed"]) is None
    assert default_kind(_Outer.model_fields["thing"]) is None


def test_help_holds_every_field_within_the_width_given() -> None:
    text = field_help(width=70)
    assert all(f"  {path}=" in text for path, _ in FIELDS)
    assert "data.path=...  (text; required; data.kind=folder)" in text
    assert max(len(line) for line in text.splitlines() if line.startswith("      ")) <= 70
