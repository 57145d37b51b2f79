"""Fields of a schema by path: which there are, and that only the ones that are meant are described anew."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from stagegraph.schema.paths import MOST_FIELDS, described, fields_in


class Person(BaseModel):
    name: str = Field(description="Their name.")
    age: int | None = None


class Pair(BaseModel):
    first: Person = Field(description="Who begins.")
    second: Person
    others: list[Person] = []
    by_name: dict[str, Person] = {}
    place: tuple[int, Person] = (0, Person(name=""))


class Tree(BaseModel):
    name: str = "x"
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    legs: int


class Pet(BaseModel):
    animal: Annotated[Cat | Dog, Field(discriminator="kind")]


class Add(BaseModel):
    left: Expression
    right: Expression


class Multiply(BaseModel):
    left: Expression
    right: Expression


class Negate(BaseModel):
    of: Expression


class Expression(BaseModel):
    node: Add | Multiply | Negate | int


def schema_of(type_: Any) -> dict[str, Any]:
    return TypeAdapter(type_).json_schema()


def texts_in(schema: dict[str, Any]) -> dict[str, str]:
    return {path: str(field.get("description", "")) for path, field in fields_in(schema).items()}


def test_paths_look_through_lists_unions_and_references() -> None:
    """A path has the names of fields alone, outer fields first."""
    found = texts_in(schema_of(Pair))
    places = ["first", "second", "others", "by_name", "place"]
    assert list(found) == places + [f"{place}.{name}" for place in places for name in ("name", "age")]
    assert found["first"] == "Who begins."
    assert found["others.name"] == "Their name."
    assert list(texts_in(schema_of(list[Person]))) == ["name", "age"]
    assert list(texts_in(schema_of(Pet))) == ["animal", "animal.kind", "animal.lives", "animal.legs"]
    assert list(texts_in(schema_of(Tree))) == ["name", "children"]
    assert texts_in(schema_of(int)) == {}


def test_types_without_end_have_a_limited_number_of_fields() -> None:
    """Types that contain each other are gone through breadth first, and not for ever."""
    found = fields_in(schema_of(Expression))
    assert next(iter(found)) == "node"
    assert {"node.left", "node.right", "node.of"} <= set(found)
    assert len(found) <= MOST_FIELDS


def test_one_place_of_a_type_is_described_and_the_other_is_not() -> None:
    """What is not named keeps its own, also where it is of the very same type; the original is as it was."""
    schema = schema_of(Pair)
    before = json.dumps(schema)
    texts = {"first.name": "The one who begins.", "second": "Who answers.", "others.name": ""}
    after = described(schema, texts)
    assert json.dumps(schema) == before
    assert texts_in(after) == texts_in(schema) | texts
    assert json.dumps(described(schema, {})) == before


def test_what_nobody_refers_to_any_more_is_left_out() -> None:
    """The old description of a type that is used once is not sent beside the new one."""

    class One(BaseModel):
        person: Person

    after = described(schema_of(One), {"person.name": "New."})
    assert "Their name." not in json.dumps(after)
    assert len(after["$defs"]) == 1


def test_a_type_in_itself_is_changed_at_every_depth() -> None:
    """The reference inside leads to the changed type."""
    after = described(schema_of(Tree), {"name": "A word."})
    assert texts_in(after)["name"] == "A word."
    assert len(after["$defs"]) == 1
    assert json.dumps(after).count("A word.") == 1


def test_a_discriminator_points_at_the_changed_options() -> None:
    """Every reference in a changed schema leads somewhere."""
    after = described(schema_of(Pet), {"animal.lives": "Nine."})
    pointed = set(after["properties"]["animal"]["discriminator"]["mapping"].values())
    assert pointed == {f"#/$defs/{name}" for name in after["$defs"]}
    assert texts_in(after)["animal.lives"] == "Nine."


@pytest.mark.parametrize("path", ["node.left.node.left.node.of", "node.left", "node.of.node.right.node"])
def test_deep_paths_into_types_that_contain_each_other_stay_small(path: str) -> None:
    """Copies are made along the path only."""
    schema = schema_of(Expression)
    if path in fields_in(schema):
        assert texts_in(described(schema, {path: "New."}))[path] == "New."
    assert len(json.dumps(described(schema, {path: "New."}))) < 100 * len(json.dumps(schema))


@given(st.dictionaries(st.sampled_from(sorted(fields_in(schema_of(Pair)))), st.text(max_size=8)))
def test_exactly_what_is_named_changes(texts: dict[str, str]) -> None:
    """For any choice of fields, those have the new texts and all others their own."""
    schema = schema_of(Pair)
    assert texts_in(described(schema, texts)) == texts_in(schema) | texts


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": True}},
        {"$ref": "#/$defs/Gone"},
        {"$ref": 3},
        {"properties": {"a": {"items": [{"properties": {"b": {}}}]}}},
        {"anyOf": [{"properties": {"a.b": {}}}, True]},
    ],
)
def test_schemas_of_all_kinds_pass(schema: dict[str, Any]) -> None:
    """A schema that somebody else wrote may hold anything."""
    paths = fields_in(schema)
    assert texts_in(described(schema, dict.fromkeys(paths, "New."))) == dict.fromkeys(paths, "New.")
