"""The cases of prompts and of parsed answers. What must come out is written by hand, in the notation of `spelling`.

Sources: the worked examples of the published Glimmer template, Llama 4's template as transformers carries it, and the
list of streams that parsers had to learn to read. Where a publisher's text is not known the case says "musespark".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from musespark.conformance.suite import Answer, Family

TODAY = "2026-10-20"
Basis = Literal["published", "musespark"]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A case whose prompt (`render`) is `spelled`, or whose stream (`parse`) is, with what it says."""

    id: str
    family: Family
    about: str
    guards: Sequence[str]
    spelled: str
    given: dict[str, Any] = field(default_factory=dict)
    says: Answer | None = None  # of a parsed answer
    basis: Basis = "published"


def all_spoken() -> tuple[Spoken, ...]:
    from musespark.conformance import muse_answers, muse_prompts
    from musespark.conformance.llama4_spoken import LLAMA4

    return (*muse_prompts.PROMPTS, *muse_answers.ANSWERS, *LLAMA4)


def user(*content: Any) -> dict[str, Any]:
    parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in content]
    return {"role": "user", "content": parts}


def picture(name: str) -> dict[str, str]:
    return {"type": "image", "picture": name}


def assistant(content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(call_id: str, name: str, arguments: str) -> dict[str, str]:
    return {"id": call_id, "name": name, "arguments": arguments}


def result(call_id: str, content: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def conversation(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), "today": TODAY, **more}


def said(reasoning: str = "", content: str = "", *calls: tuple[str, dict[str, Any]]) -> Answer:
    listed = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return {"reasoning": reasoning, "content": content, "tool_calls": listed}


WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "extra": {}},
    },
}
CLOCK: dict[str, Any] = {
    "name": "clock",
    "description": "The time.",
    "parameters": {"type": "object", "properties": {}},
}
TOOLS = {"tools": [WEATHER, CLOCK]}
