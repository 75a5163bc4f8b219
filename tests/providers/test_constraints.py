"""From a request to a grammar: when there is one, and that no schema does worse than to be refused."""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from musespark.chat.constraint import CallRule, Constraint
from musespark.chat.formats import MODEL_TYPES, make_format
from musespark.chat.messages import Message, Text, Tool
from musespark.chat.tokenizer import LLAMA4_TOKENS, Tokenizer
from musespark.engine.grammar import Vocabulary
from musespark.errors import InvalidRequest
from musespark.providers.base import AnswerSchema, ChatRequest, OfferedTool
from musespark.providers.constraints import compile_grammar, constraint_of

BYTES = {
    name: Tokenizer.bytes_only(LLAMA4_TOKENS) if name == "llama4" else Tokenizer.bytes_only() for name in MODEL_TYPES
}
FORMATS = {name: make_format(name, tokenizer) for name, tokenizer in BYTES.items()}
VOCABULARIES = {name: Vocabulary(BYTES[name], FORMATS[name].stop_token_ids) for name in MODEL_TYPES}
OBJECT: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = OBJECT | {"additionalProperties": False}
LOOSE, STRICT = OfferedTool(Tool("loose", "", OBJECT), field="x"), OfferedTool(Tool("strict", "", OBJECT), True, "y")
ANSWER = AnswerSchema({"type": "integer"}, "z")


def asked(**fields: Any) -> ChatRequest:
    return ChatRequest(id="r", messages=(Message("user", (Text("hi"),)),), cache_salt=b"", **fields)


def constrained(**fields: Any) -> Constraint | None:
    return constraint_of(asked(**fields))


def test_what_is_left_to_the_model_needs_no_grammar() -> None:
    assert constrained() is None
    assert constrained(tools=(LOOSE,)) is None
    assert constrained(parallel_tool_calls=False) is None


def test_strict_tools_are_held_to_their_schemas_and_others_are_not() -> None:
    assert constrained(tools=(LOOSE, STRICT)) == Constraint(
        calls=(CallRule("loose", None, "x"), CallRule("strict", CLOSED, "y")), max_calls=16
    )


def test_a_call_that_is_required_is_held_to_its_schema() -> None:
    assert constrained(tools=(LOOSE, STRICT), tool_choice="required") == Constraint(
        calls=(CallRule("loose", CLOSED, "x"), CallRule("strict", CLOSED, "y")), must_call=True, max_calls=16
    )
    assert constrained(tools=(LOOSE, STRICT), tool_choice="required", only_tool="loose") == Constraint(
        calls=(CallRule("loose", CLOSED, "x"),), must_call=True, max_calls=1
    )


def test_a_schema_of_the_answer_and_one_call_at_most() -> None:
    assert constrained(answer_schema=ANSWER) == Constraint(content={"type": "integer"})
    both = constrained(answer_schema=ANSWER, tools=(LOOSE,), parallel_tool_calls=False)
    assert both == Constraint(content={"type": "integer"}, calls=(CallRule("loose", None, "x"),), max_calls=1)


@pytest.mark.parametrize(
    "parameters",
    [
        OBJECT | {"additionalProperties": True},
        OBJECT | {"additionalProperties": {"type": "integer"}},
        OBJECT | {"required": ["b"]},
        {"type": "object"},
        {"$ref": "#/$defs/a", "$defs": {"a": OBJECT}, "type": "object"},
    ],
)
def test_arguments_beyond_the_properties_come_only_where_the_schema_speaks_of_them(parameters: dict[str, Any]) -> None:
    tool = OfferedTool(Tool("f", "", parameters), True)
    constraint = constrained(tools=(tool,))
    assert constraint is not None
    assert constraint.calls[0].schema == parameters


def test_what_can_not_be_true_together() -> None:
    for fields, param in [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": (LOOSE,), "tool_choice": "required", "only_tool": "other"}, "tool_choice"),
        ({"tools": (STRICT,), "ignore_eos": True}, "ignore_eos"),
        ({"answer_schema": ANSWER, "ignore_eos": True}, "ignore_eos"),
        ({"tools": (OfferedTool(Tool("f", "", {"type": "array"}), True, "x"),)}, "x.type"),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            constrained(**fields)
        assert caught.value.param == param
    assert constrained(tools=(LOOSE,), ignore_eos=True) is None


class Point(BaseModel):
    x: float
    y: float = 0.0


class Tree(BaseModel):
    name: str
    kids: list[Tree]


class Round(BaseModel):
    kind: Literal["round"]
    radius: int


class Square(BaseModel):
    kind: Literal["square"]
    side: str


class Everything(BaseModel):
    """What clients' models are made of."""

    when: datetime.datetime
    maybe: datetime.date | None
    name: uuid.UUID
    points: list[Point]
    optional: str | None = None
    number: Annotated[int, Field(ge=0, lt=10)]
    either: int | str
    tree: Tree
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}\d{2}$")]
    pair: tuple[int, str]
    counts: dict[str, int]
    shape: Annotated[Round | Square, Field(discriminator="kind")]


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_schemas_of_pydantic_models_are_taken_as_they_are(name: str) -> None:
    schema = Everything.model_json_schema()
    for request in (
        asked(tools=(OfferedTool(Tool("f", "", schema), True),), tool_choice="required"),
        asked(answer_schema=AnswerSchema(schema, "f")),
    ):
        constraint = constraint_of(request)
        assert constraint is not None
        assert compile_grammar(constraint, request, FORMATS[name], VOCABULARIES[name], 100).matcher().allowed().any()


KEYWORDS = [
    "type",
    "enum",
    "const",
    "required",
    "properties",
    "additionalProperties",
    "items",
    "prefixItems",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "$defs",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "minProperties",
    "patternProperties",
    "title",
]
WORDS = st.sampled_from(
    ["string", "integer", "object", "array", "#", "#/$defs/a", "a", "</atem:x", '"', "date", "", "é"]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3000), st.floats(allow_nan=False, allow_infinity=False), WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*KEYWORDS, "a", "b"]), inner, max_size=4),
    ),
    max_leaves=12,
)
SCHEMAS = st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=5)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, st.sampled_from(MODEL_TYPES), st.booleans())
def test_any_schema_is_compiled_or_refused_by_its_place(schema: dict[str, Any], name: str, for_tool: bool) -> None:
    if for_tool:
        request = asked(tools=(OfferedTool(Tool("f", "", schema), True, "place"),), tool_choice="required")
    else:
        request = asked(answer_schema=AnswerSchema(schema, "place"))
    problem: InvalidRequest | None = None
    try:
        constraint = constraint_of(request)
        assert constraint is not None
        compile_grammar(constraint, request, FORMATS[name], VOCABULARIES[name], 100).matcher().allowed()
    except InvalidRequest as error:
        problem = error
    assert problem is None or (problem.param or "").startswith("place"), (problem, json.dumps(schema))
