"""What a request asks of its answer, tools and schemas together, as a `Constraint` for the model's format.

A grammar is made only where something would otherwise be left to the model: a call that must come, arguments or an
answer of a schema, or no second call. Every schema is checked by itself first, so that an error can name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musespark.chat.constraint import MAX_CALLS, CallRule, Constraint, json_grammar
from musespark.chat.formats import ChatFormat
from musespark.chat.schema_words import plain
from musespark.chat.schemas import check_schema, check_size
from musespark.engine.grammar import Grammar, ReasoningLimit, Vocabulary
from musespark.errors import InvalidRequest, InvalidSchema
from musespark.providers.base import ChatRequest, OfferedTool

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 262_144  # of all schemas together


def check_tools(tools: Sequence[OfferedTool]) -> None:
    """Raises InvalidRequest for too many or too much of them, or two of one name."""
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"there are {len(tools):,} tools; at most {MAX_TOOLS} are allowed", param="tools")
    num_bytes = sum(check_size(offered.tool.parameters, offered.field) for offered in tools)
    if num_bytes > MAX_TOOLS_BYTES:
        raise InvalidSchema(
            f"the parameters of all tools have {num_bytes:,} bytes; at most {MAX_TOOLS_BYTES:,} are allowed",
            param="tools",
        )
    names = set()
    for offered in tools:
        if offered.tool.name in names:
            raise InvalidRequest(f"two tools are named {offered.tool.name!r}", param="tools")
        names.add(offered.tool.name)


def constraint_of(request: ChatRequest) -> Constraint | None:
    """None for an answer that is left to the model.

    Raises InvalidRequest for what can't be true together, InvalidSchema for a schema that can't be held to.
    """
    check_tools(request.tools)
    must_call = request.tool_choice == "required"
    callable_tools = [tool for tool in request.tools if request.only_tool in (None, tool.tool.name)]
    if must_call and not callable_tools:
        name = "any" if request.only_tool is None else repr(request.only_tool)
        raise InvalidRequest(f"tool_choice asks for {name}, which is none of the tools", param="tool_choice")
    one_call = request.only_tool is not None or not request.parallel_tool_calls
    strict = [tool for tool in callable_tools if tool.strict or must_call]
    if request.answer_schema is None and not strict and not (one_call and callable_tools):
        return None
    if request.ignore_eos:
        raise InvalidRequest(
            "ignore_eos goes on after the end of an answer; tools that must be called, and schemas, need that end",
            param="ignore_eos",
        )
    for tool in strict:
        check_schema(plain(tool.tool.parameters, strict=tool.strict), tool.field)
        if tool.tool.parameters.get("type", "object") != "object":
            raise InvalidSchema(f"`{tool.field}.type` must be 'object'", param=f"{tool.field}.type")
    answer = None if must_call else request.answer_schema
    if request.answer_schema is not None:
        check_schema(plain(request.answer_schema.schema), request.answer_schema.field)
    return Constraint(
        content=None if answer is None else plain(answer.schema),
        calls=tuple(
            CallRule(
                tool.tool.name,
                _closed(plain(tool.tool.parameters, strict=tool.strict)) if tool in strict else None,
                tool.field,
            )
            for tool in callable_tools
        ),
        must_call=must_call,
        max_calls=1 if one_call else MAX_CALLS,
    )


def _closed(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call has no arguments beside those of its schema, unless that speaks of others."""
    properties = parameters.get("properties")
    others = set(parameters) & {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
    if not isinstance(properties, Mapping) or others or not set(parameters.get("required") or ()) <= set(properties):
        return {"type": "object", **parameters}
    return {"type": "object", **parameters, "additionalProperties": False}


def compile_grammar(
    constraint: Constraint, request: ChatRequest, chat: ChatFormat, vocabulary: Vocabulary, max_tokens: int
) -> Grammar:
    """Takes up to a second for the largest schemas. Reasoning may take half of `max_tokens`.

    Raises InvalidSchema naming the schema.
    """
    schemas = [(rule.schema, rule.field) for rule in constraint.calls if rule.schema is not None]
    if request.answer_schema is not None:
        schemas.append((plain(request.answer_schema.schema), request.answer_schema.field))
    for schema, field in schemas:
        try:
            Grammar(vocabulary, json_grammar(schema), field=field)
        except InvalidSchema as error:
            error.message = f"`{field}`: {error.message}"
            raise
    end = chat.end_of_reasoning
    limit = None if end is None else ReasoningLimit(end, max_tokens // 2)
    field = "tools" if request.answer_schema is None else "response_format"
    return Grammar(vocabulary, chat.grammar(constraint), field=field, limit=limit)
