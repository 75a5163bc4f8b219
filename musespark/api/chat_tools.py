"""`tools`, `tool_choice` and `response_format` of a chat request, as OpenAI's protocol has them.

Tools in a namespace, which the Muse models' own API has, are offered under `namespace.name`. What a schema may hold is
checked by the provider, which knows whether the schema must be kept to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, field_validator
from pydantic_core import PydanticCustomError

from musespark.api.chat_messages import TAG_MARK, Strict, ToolName, tag
from musespark.chat import messages
from musespark.errors import InvalidRequest
from musespark.providers.base import AnswerSchema, OfferedTool
from musespark.providers.constraints import MAX_TOOLS

ANY_OBJECT: dict[str, Any] = {"type": "object"}
Description = Annotated[str, StringConstraints(max_length=16_384)]


class FunctionDefinition(Strict):
    name: ToolName
    description: Description | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of an object; default: no parameters")
    strict: bool | None = Field(None, description="hold the arguments of every call to the schema")


class FunctionTool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class NamespaceTool(Strict):
    type: Literal["namespace"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,63}$")]
    tools: Annotated[list[FunctionTool], Field(min_length=1, max_length=MAX_TOOLS)]
    description: str | None = None
    empty_only = frozenset({"defer_loading"})

    @field_validator("description")
    @classmethod
    def _says_nothing(cls, text: str | None) -> str | None:
        if text:
            raise PydanticCustomError("unsupported_field", "has no place in the prompt; describe the functions instead")
        return text


def _type(value: Any) -> str:
    return TAG_MARK + str(value.get("type") if isinstance(value, dict) else getattr(value, "type", None))


Tool = Annotated[
    Annotated[FunctionTool, tag("function")] | Annotated[NamespaceTool, tag("namespace")],
    Discriminator(_type, custom_error_type="unknown_tool", custom_error_message="unknown tool"),
]


class NamedFunction(Strict):
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


def _kind_of_choice(value: Any) -> str:
    return TAG_MARK + ("word" if isinstance(value, str) else "object")


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], tag("word")] | Annotated[NamedTool, tag("object")],
    Discriminator(_kind_of_choice),
]


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="as other servers take a json_schema")


class JsonSchema(Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = Field(description="a label")
    description: Description | None = Field(None, description="a label: the model is not shown it")
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="true or not, the answer is held to the schema")


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, tag("text")]
    | Annotated[JsonObjectFormat, tag("json_object")]
    | Annotated[JsonSchemaFormat, tag("json_schema")],
    Discriminator(_type, custom_error_type="unknown_format", custom_error_message="unknown format"),
]


def offered_tools(tools: Sequence[FunctionTool | NamespaceTool]) -> tuple[OfferedTool, ...]:
    """All functions, those of namespaces under their full names."""
    offered = []
    for i, tool in enumerate(tools):
        if isinstance(tool, FunctionTool):
            offered.append(_offered(tool.function, "", f"tools.{i}.function"))
        else:
            for j, inner in enumerate(tool.tools):
                offered.append(_offered(inner.function, f"{tool.name}.", f"tools.{i}.tools.{j}.function"))
    return tuple(offered)


def _offered(function: FunctionDefinition, prefix: str, field: str) -> OfferedTool:
    parameters = {} if function.parameters is None else {"parameters": function.parameters}
    tool = messages.Tool(prefix + function.name, function.description or "", **parameters)
    return OfferedTool(tool, bool(function.strict), f"{field}.parameters")


def check_tool_choice(tools: Sequence[FunctionTool | NamespaceTool], choice: str | NamedTool | None) -> None:
    """Raises InvalidRequest for a choice that the tools don't offer."""
    if not tools and choice not in (None, "none", "auto"):
        raise InvalidRequest("`tool_choice` asks for a call, and there are no `tools`", param="tool_choice")
    if isinstance(choice, NamedTool):
        names = [offered.tool.name for offered in offered_tools(tools)]
        if choice.function.name not in names:
            raise InvalidRequest(
                f"`tool_choice.function.name` is {choice.function.name!r}, which is none of the tools",
                param="tool_choice.function.name",
            )


def answer_schema(response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> AnswerSchema | None:
    if isinstance(response_format, JsonSchemaFormat):
        return AnswerSchema(response_format.json_schema.json_schema, "response_format.json_schema.schema")
    if isinstance(response_format, JsonObjectFormat):
        if response_format.json_schema is not None:
            return AnswerSchema(ANY_OBJECT | response_format.json_schema, "response_format.schema")
        return AnswerSchema(ANY_OBJECT, "response_format")
    return None
