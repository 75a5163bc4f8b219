"""From a checkpoint and a file of conversations to a checkpoint that answers otherwise."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from musespark.chat.messages import Image, Message, Text
from musespark.chat.templates import render, render_reply
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import ConfigError, DataError
from musespark.model.checkpoint import open_checkpoint
from musespark.model.network import MuseSpark, generate_greedy, load_network
from musespark.training.adapters import Adapters
from musespark.training.chat_rows import LONGEST_ROW, read_conversations
from musespark.training.conversations import NANO_SETTINGS
from musespark.training.export import export
from musespark.training.finetune import FinetuneOptions, finetune, finetune_recipe
from musespark.training.loop import Trainer
from tests.training.pack import png, toy_recipe

QUESTION = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Me."}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh toy as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("start")
    recipe = toy_recipe(folder)
    network = MuseSpark(recipe.config)
    network.init_weights(seed=5)
    export(network, recipe, folder / "toy")
    return folder / "toy"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(**changes: Any) -> FinetuneOptions:
    return replace(FinetuneOptions(epochs=30, sequence_length=256, rows_per_step=1, lr=1.0), **changes)


@pytest.mark.parametrize("rank", [None, 4])
def test_the_model_learns_to_say_what_the_file_says_and_serves_at_once(
    tmp_path: Path, start: Path, rank: int | None
) -> None:
    data = write(tmp_path / "chat.jsonl", *[{"messages": [QUESTION, ANSWER]}] * 2)
    finetune(start, data, tmp_path / "tuned", options(lora_rank=rank, lr=1.0 if rank is None else 10.0))
    tokenizer = Tokenizer.from_file(tmp_path / "tuned" / "tokenizer.json")
    prompt = render([Message("user", (Text("Who?"),))], tokenizer, NANO_SETTINGS)
    reply = render_reply(Message("assistant", (Text("Me."),)), tokenizer)
    assert generate_greedy(load_network(tmp_path / "tuned"), prompt.token_ids, (), max_tokens=len(reply)) == reply
    assert (tmp_path / "tuned" / "chat_settings.json").read_bytes() == (start / "chat_settings.json").read_bytes()
    assert open_checkpoint(tmp_path / "tuned").generation == open_checkpoint(start).generation


def test_adapters_start_at_the_very_model_and_touch_only_the_matrices_of_the_text_half(start: Path) -> None:
    network = load_network(start)
    adapters = Adapters(network, rank=3, seed=0)
    before = {name: p.clone() for name, p in network.named_parameters()}
    adapters.merge_into(network)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    with torch.no_grad():
        for b in adapters.b.values():
            b.normal_()
    adapters.merge_into(network)
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not any(part in name for name in changed for part in ("embed", "lm_head", "gate.weight", "norm", "vision"))
    name = next(name for name in changed if name.endswith("o_proj.weight"))
    difference = dict(network.named_parameters())[name] - before[name]
    assert torch.linalg.matrix_rank(difference, tol=1e-3) == 3


def test_with_adapters_nothing_else_learns(tmp_path: Path, start: Path) -> None:
    data = write(tmp_path / "chat.jsonl", {"messages": [QUESTION, ANSWER]})
    recipe = finetune_recipe(open_checkpoint(start), data, tmp_path / "run", options(epochs=2, lora_rank=2))
    trainer = Trainer(recipe, data=tmp_path, out=tmp_path / "run")
    before = {name: p.clone() for name, p in trainer.network.named_parameters()}
    trainer.run()
    assert all(torch.equal(p, before[name]) for name, p in trainer.network.named_parameters())


def test_pictures_are_read_from_files_beside_the_rows_and_from_data_urls(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png((255, 0, 0)))
    url = "data:image/png;base64," + base64.b64encode(png((0, 0, 255))).decode()
    parts = [{"type": "image", "path": "red.png"}, {"type": "image_url", "image_url": {"url": url}}]
    content = [*parts, {"type": "text", "text": "Colours?"}]
    data = write(tmp_path / "chat.jsonl", {"messages": [{"role": "user", "content": content}, ANSWER]})
    (conversation,) = read_conversations(data)
    assert conversation.messages[0].content == (Image(png((255, 0, 0))), Image(png((0, 0, 255))), Text("Colours?"))


def test_calls_results_reasoning_and_tools_are_read(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    rows = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Add."},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ANSWER,
    ]
    tools = [{"type": "function", "function": {"name": "add", "description": "Adds"}}]
    (found,) = read_conversations(
        write(tmp_path / "c.jsonl", {"messages": rows, "tools": tools, "reasoning_effort": "high"})
    )
    assert (found.messages[1].reasoning, found.messages[1].tool_calls[0].name) == ("Add.", "add")
    assert (found.messages[2].tool_call_id, found.tools[0].description, found.effort) == ("c1", "Adds", "high")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\xff{}", "line 2 is not UTF-8"),
        (b"{", "line 2 is not JSON"),
        (b"[]", "line 2 must be an object with a list `messages`"),
        (b'{"messages": [], "mesages": []}', "line 2 has an unknown field 'mesages'"),
        (b'{"messages": []}', "line 2 must end with an assistant's message"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "line 2 must end with an assistant's message"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', r"line 2 messages\[0\]: `role` must be one of"),
        (b'{"messages": [{"role": "user", "content": 3}]}', r"messages\[0\]: `content` must be a text"),
        (b'{"messages": [{"role": "user", "content": [{"type": "video"}]}]}', r"content\[0\]: a part is a text"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image", "path": "no.png"}]}]}',
            r"content\[0\]: no\.png can't be read: No such file",
        ),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ";base64,!"}}]}]}',
            "the image is not base64",
        ),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ";base64,AA"}}]}]}',
            r"messages\[0\]\.content\[0\]: ",
        ),
        (b'{"messages": [], "reasoning_effort": "huge"}', "has the reasoning_effort 'huge'"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: bytes, problem: str) -> None:
    good = json.dumps({"messages": [QUESTION, ANSWER]}).encode()
    (tmp_path / "chat.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=problem):
        list(read_conversations(tmp_path / "chat.jsonl"))


def test_a_gigantic_row_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musespark.training.chat_rows.LONGEST_ROW", 100)
    assert LONGEST_ROW == 64 << 20
    row = json.dumps({"messages": [{**QUESTION, "content": "x"}, ANSWER]})
    padded = row[:-1] + " " * (100 - len(row)) + "}"
    (tmp_path / "chat.jsonl").write_text(padded)  # 100 bytes, the most
    assert len(list(read_conversations(tmp_path / "chat.jsonl"))) == 1
    (tmp_path / "chat.jsonl").write_text(padded + " ")
    with pytest.raises(DataError, match="line 1 is longer than 100 bytes"):
        list(read_conversations(tmp_path / "chat.jsonl"))


def test_text_that_spells_a_control_token_teaches_text(tmp_path: Path, start: Path) -> None:
    said = {"role": "assistant", "content": "<|eot|>"}
    data = write(tmp_path / "chat.jsonl", {"messages": [QUESTION, said]})
    (conversation,) = read_conversations(data)
    tokenizer = Tokenizer.bytes_only()
    ids = render(list(conversation.messages), tokenizer, NANO_SETTINGS).token_ids
    assert ids.count(tokenizer.special("<|eot|>")) == 3  # of the system, the user and the assistant


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 1001}, "epochs is 1001"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"lora_rank": 1025}, "lora_rank is 1025"),
        ({"lr": 0}, "lr is 0"),
        ({"sequence_length": 63}, "sequence_length is 63"),
        ({"rows_per_step": 0}, "rows_per_step is 0"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        options(**changes)
    options(epochs=1000, lora_rank=1024, sequence_length=64)


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda folder: (folder / "out").mkdir(), "out exists already"),
        (lambda folder: write(folder / "chat.jsonl"), "holds no conversation"),
    ],
)
def test_a_run_that_can_give_nothing_is_refused(
    tmp_path: Path, start: Path, prepare: Callable[[Path], object], problem: str
) -> None:
    write(tmp_path / "chat.jsonl", {"messages": [QUESTION, ANSWER]})
    prepare(tmp_path)
    with pytest.raises((ConfigError, DataError), match=problem):
        finetune(start, tmp_path / "chat.jsonl", tmp_path / "out", options())
