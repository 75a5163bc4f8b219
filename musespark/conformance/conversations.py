"""Conversations as JSON: what a case of prompts or of parsed answers says, and how our own chat room answers it.

A message is {"role", "content", "reasoning", "tool_calls", "tool_call_id", "name"}; content is a text or a list of
{"type": "text", "text"} and {"type": "image", "picture": NAME}, NAME being one of the suite's pictures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from musespark.chat.deltas import Delta, ToolCallArguments, ToolCallStart
from musespark.chat.formats import make_format
from musespark.chat.messages import Image, Message, Text, Tool, ToolCall
from musespark.chat.tokenizer import Tokenizer
from musespark.conformance.spelling import spell
from musespark.conformance.suite import Answer, Arrays, Family


def render(family: Family, given: Mapping[str, Any], tokenizer: Tokenizer, pictures: Arrays) -> Answer:
    """The prompt that our chat room makes: {"token_ids", "spelled"}."""
    prompt = make_format(family, tokenizer).render(
        [_message(message, pictures) for message in given["messages"]],
        tools=_tools(given),
        reasoning_effort=given.get("reasoning_effort"),
        today=date.fromisoformat(given["today"]),
    )
    return {"token_ids": prompt.token_ids, "spelled": spell(prompt.token_ids, tokenizer)}


def parse(family: Family, given: Mapping[str, Any], tokenizer: Tokenizer) -> Answer:
    """What our parser makes of an answer: {"reasoning", "content", "tool_calls": [{"name", "arguments"}]}."""
    parser = make_format(family, tokenizer).parser(tools=_tools(given))
    events = [event for token_id in given["token_ids"] for event in parser.push(token_id)] + list(parser.finish())
    texts = {"reasoning": "", "content": ""}
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, Delta):
            texts[event.kind] += event.text
        elif isinstance(event, ToolCallStart):
            calls.append([event.name, ""])
        elif isinstance(event, ToolCallArguments):
            calls[event.index][1] += event.json
    return {**texts, "tool_calls": [{"name": name, "arguments": json.loads(text or "{}")} for name, text in calls]}


def as_file(picture: np.ndarray) -> bytes:
    """A picture of the suite as a PNG file."""
    file = io.BytesIO()
    PillowImage.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _message(data: Mapping[str, Any], pictures: Arrays) -> Message:
    content = data.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Message(
        data["role"],
        tuple(
            Text(part["text"]) if part["type"] == "text" else Image(as_file(pictures[part["picture"]]))
            for part in parts
            if part["type"] != "text" or part["text"]
        ),
        reasoning=data.get("reasoning"),
        tool_calls=tuple(ToolCall(**call) for call in data.get("tool_calls", ())),
        tool_call_id=data.get("tool_call_id"),
        name=data.get("name"),
    )


def _tools(given: Mapping[str, Any]) -> list[Tool]:
    return [Tool(**tool) for tool in given.get("tools", ())]
