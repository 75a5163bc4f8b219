"""Random toy checkpoints of all three families, from the folder to calls: what is required comes, and is valid.

Random weights say anything that they may; an independent validator (jsonschema_rs) looks at what came.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from musespark.api.load import LoadedModel, load_model
from musespark.api.settings import Settings
from musespark.chat.messages import Message, Text, Tool
from musespark.chat.tiles import TILE_SIDE
from musespark.chat.tokenizer import LLAMA4_TOKENS, Tokenizer
from musespark.model.checkpoint import save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.presets import preset
from musespark.providers.base import AnswerSchema, ChatRequest, ContentDelta, Finished, OfferedTool, ToolCallDelta
from tests.model.files import random_tensors

FAMILIES = {"toy": "muse_spark", "toy-glimmer": "muse_glimmer", "toy-llama4": "llama4"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 7}, "maxItems": 3},
        "at": {"type": "object", "properties": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}}},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
SCHEMA["properties"]["at"] |= {"required": ["hour"], "additionalProperties": False}
TOOLS = (OfferedTool(Tool("weather", "", SCHEMA)), OfferedTool(Tool("clock")))


def toy_checkpoint(name: str, folder: Path) -> Path:
    tokenizer = Tokenizer.bytes_only(LLAMA4_TOKENS) if name == "toy-llama4" else Tokenizer.bytes_only()
    data = preset(name).to_dict()
    data["text_config"] |= {"vocab_size": 320, "max_position_embeddings": 4096}
    if name == "toy-llama4":
        data |= {"image_token_index": tokenizer.special("<|patch|>")}
        data["vision_config"] |= {"image_size": TILE_SIDE}  # the preset's tower is too small for pictures
    config = ModelConfig.from_dict(data)
    assert config.model_type == FAMILIES[name]
    tokenizer.save(folder / "tokenizer.json")
    save_checkpoint(folder / name, config, random_tensors(config), files={"tokenizer.json": folder / "tokenizer.json"})
    return folder / name


async def answer(model: LoadedModel, **fields: Any) -> tuple[str, list[tuple[str, str]], str]:
    """Content, calls and finish reason."""
    question = (Message("user", (Text("hi"),)),)
    request = ChatRequest(**({"messages": question, "cache_salt": b"", "max_tokens": 1000} | fields))
    content, calls, reason = "", [], ""
    async for event in await model.provider.chat(request):
        if isinstance(event, ContentDelta):
            content += event.text
        elif isinstance(event, ToolCallDelta):
            if event.name is not None:
                calls.append((event.name, ""))
            name, arguments = calls[event.call]
            calls[event.call] = (name, arguments + event.arguments)
        elif isinstance(event, Finished):
            reason = event.reason
    return content, calls, reason


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_make_valid_calls_and_answers(name: str, tmp_path: Path) -> None:
    checkpoint = toy_checkpoint(name, tmp_path)

    async def run() -> None:
        model = load_model(Settings(checkpoint=checkpoint, state_dir=tmp_path, threads=1))
        try:
            greedy = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
            alone = await answer(model, id="alone", **greedy)
            one: dict[str, Any] = {"only_tool": "weather", "tool_choice": "required", "tools": TOOLS}
            held = [answer(model, id=f"c{seed}", seed=seed, temperature=1.0, **one) for seed in range(2)]
            schema = AnswerSchema(SCHEMA, "f")
            held += [
                answer(model, id=f"a{seed}", seed=seed, temperature=1.0, answer_schema=schema) for seed in range(3)
            ]
            beside, *outcomes = await asyncio.gather(answer(model, id="beside", **greedy), *held)
        finally:
            await model.close(0.0)
        assert beside == alone
        for content, calls, reason in outcomes[:2]:
            [(called, arguments)] = calls
            assert (called, content, reason) == ("weather", "", "tool_calls")
            jsonschema_rs.validate(SCHEMA, json.loads(arguments))
        for content, calls, reason in outcomes[2:]:
            assert (calls, reason) == ([], "stop")
            jsonschema_rs.validate(SCHEMA, json.loads(content))

    asyncio.run(run())
