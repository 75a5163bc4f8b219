"""Answers of the Muse families as people write them, parsed into what a client makes of the deltas."""

from __future__ import annotations

import itertools
import json
from typing import Any

from chat.spelling import read
from chat.test_parser import TOKENS
from musespark.chat.deltas import Delta, Event, ToolCallArguments, ToolCallError, ToolCallStart
from musespark.chat.messages import Tool
from musespark.chat.parser import ChatParser


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


STRING, INTEGER, ANY = {"type": "string"}, {"type": "integer"}, {}
TOOLS = [
    Tool("get_weather", parameters=schema(city=STRING, days=INTEGER, x=ANY)),
    Tool("files.read", parameters=schema(path=STRING)),
    Tool("read", parameters=schema(filePath=STRING, limit=INTEGER)),
    Tool("clock"),
]
SELF, USER = " to=self<|message|>", "<|start|>assistant to=user<|message|>"


class Turn:
    """What a client makes of the deltas: texts joined, the fragments of each call's arguments joined."""

    def __init__(self, events: list[Event]) -> None:
        self.reasoning = "".join(e.text for e in events if isinstance(e, Delta) and e.kind == "reasoning")
        self.content = "".join(e.text for e in events if isinstance(e, Delta) and e.kind == "content")
        self.errors = [(e.message, e.text) for e in events if isinstance(e, ToolCallError)]
        self.names = [e.name for e in events if isinstance(e, ToolCallStart)]
        self.ids = [e.id for e in events if isinstance(e, ToolCallStart)]
        self.arguments = ["" for _ in self.names]
        num_started = 0
        for event in events:
            if isinstance(event, ToolCallStart):
                assert event.index == num_started
                num_started += 1
            elif isinstance(event, ToolCallArguments):
                assert event.index == num_started - 1
                assert event.json
                self.arguments[event.index] += event.json

    @property
    def calls(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(text)) for name, text in zip(self.names, self.arguments, strict=True)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turn) and self.__dict__ == other.__dict__


def parse(ids: list[int], tools: list[Tool] = TOOLS, **options: Any) -> Turn:
    numbers = itertools.count()
    parser = ChatParser(TOKENS, tools=tools, make_id=lambda: f"id{next(numbers)}", **options)
    return Turn([event for i in ids for event in parser.push(i)] + parser.finish())


def turn(spelled: str, tools: list[Tool] = TOOLS, **options: Any) -> Turn:
    return parse(read(spelled), tools, **options)


def invoke(name: str, *parameters: tuple[str, str]) -> str:
    lines = [f'<atem:parameter name="{key}">{value}</atem:parameter>\n' for key, value in parameters]
    return f'<atem:function_calls>\n<atem:invoke name="{name}">\n{"".join(lines)}</atem:invoke>\n</atem:function_calls>'


def call(name: str, *parameters: tuple[str, str]) -> str:
    return f" to={name}<|message|>{invoke(name, *parameters)}<|eot|>"
