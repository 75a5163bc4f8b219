"""The wire format of POST /v1/chat/completions, byte for byte where clients depend on it.

Shapes are those of OpenAI's specification 2.3.0; the SDK's own strict validation is in test_sdk.py.
"""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from musespark.api.chat_request import ChatCompletionRequest
from musespark.errors import EngineFailed
from musespark.providers.base import ChatRequest
from tests.api.world import LOG, World, asking, running_world
from tests.providers.talking import TOKENIZER


def events_of(response: httpx.Response) -> list[Any]:
    """The JSON of every event; `[DONE]` as text."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def test_a_whole_answer_has_the_shape_of_the_specification(world: World) -> None:
    before = int(time.time())
    response = world.ask("think: hm; say: hello")
    body = response.json()
    assert set(body) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert before <= body["created"] <= time.time()
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hello",
                "refusal": None,
                "annotations": [],
                "reasoning_content": "hm",
                "reasoning": "hm",
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = body["usage"]
    assert usage["completion_tokens"] == 37
    assert usage["total_tokens"] == usage["prompt_tokens"] + 37
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 12, "audio_tokens": 0}
    assert set(usage["prompt_tokens_details"]) == {"cached_tokens", "image_tokens", "text_tokens", "audio_tokens"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    assert "server" not in response.headers


def test_a_stream_has_the_shape_of_the_specification(world: World) -> None:
    response = world.ask("think: h; say: ab", stream=True)
    *chunks, done = events_of(response)
    assert done == "[DONE]"
    assert all(set(c) == {"id", "object", "created", "model", "system_fingerprint", "choices"} for c in chunks)
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"]) for c in chunks}) == 1
    assert [c["choices"] for c in chunks] == [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        for delta, reason in [
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"reasoning_content": "h", "reasoning": "h"}, None),
            ({"content": "a"}, None),
            ({"content": "b"}, None),
            ({}, "stop"),
        ]
    ]
    assert response.headers["cache-control"] == "no-cache"


def test_include_usage_adds_a_last_chunk_and_nulls_before_it(world: World) -> None:
    *chunks, last, done = events_of(world.ask("say: a", stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    whole = world.ask("say: a").json()["usage"]
    assert last["usage"]["completion_tokens"] == whole["completion_tokens"]
    assert last["usage"]["prompt_tokens"] == whole["prompt_tokens"]


def test_choices_of_one_stream_are_told_apart_and_each_has_a_role_and_an_end(world: World) -> None:
    *chunks, _ = events_of(world.ask("say: hi", stream=True, n=3))
    for index in range(3):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "hi"
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]


def test_what_is_streamed_joins_to_what_is_whole(world: World) -> None:
    for text in ("say: déjà vu 😀 end", "think: 思考; say: 答え", "say: ", "think: only; say: "):
        message = world.ask(text).json()["choices"][0]["message"]
        *chunks, _ = events_of(world.ask(text, stream=True))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
        assert "".join(delta.get("reasoning", "") for delta in deltas) == message.get("reasoning", "")


def test_logprobs_come_with_their_text(world: World) -> None:
    choice = world.ask("say: hé", logprobs=True, top_logprobs=1).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert [token["bytes"] for token in tokens] == [[0x68], [0xC3], [0xA9]]
    assert [token["token"] for token in tokens] == ["h", "\ufffd", "\ufffd"]
    assert [len(token["top_logprobs"]) for token in tokens] == [1, 1, 1]
    assert choice["logprobs"]["refusal"] is None
    *chunks, _ = events_of(world.ask("say: hé", logprobs=True, stream=True))
    said = [c["choices"][0] for c in chunks if c["choices"][0]["delta"].get("content")]
    assert [(c["delta"]["content"], len(c["logprobs"]["content"])) for c in said] == [("h", 1), ("é", 2)]
    assert all(token["top_logprobs"] == [] for c in said for token in c["logprobs"]["content"])


def test_metadata_comes_back_and_labels_go_to_the_log(world: World) -> None:
    response = world.ask("say: a", metadata={"run": "7"}, user="someone\n\x1b[31m", safety_identifier="abc")
    assert response.json()["metadata"] == {"run": "7"}
    line = world.log_line(response.headers["x-request-id"])
    assert json.loads(line)["user"] == "someone\n\x1b[31m"
    assert "\x1b" not in line
    assert json.loads(line)["safety_identifier"] == "abc"


@pytest.mark.parametrize("stream", [True, False])
def test_while_an_answer_is_written_nothing_holds_the_request_as_it_was_sent(tmp_path: Path, stream: bool) -> None:
    """Its bytes are counted until it is admitted; the answer may take minutes after that."""
    with running_world(tmp_path / "state", delay_s=0.01) as world:
        asker = threading.Thread(target=world.ask, args=("count",), kwargs={"stream": stream, "max_tokens": 100})
        asker.start()
        world.wait_until(lambda: world.service.stats.num_generated_tokens_total > 10)
        gc.collect()
        assert not any(type(held) in (ChatCompletionRequest, ChatRequest) for held in gc.get_objects())
        asker.join()


def test_a_seed_and_a_temperature_give_the_same_answer_again(world: World) -> None:
    letters = {str(token): 30 for token in TOKENIZER.encode("abcdefgh")}  # as likely as what the model is to say

    def answer(seed: int) -> str:
        response = world.ask("count", temperature=2.0, logit_bias=letters, seed=seed, max_tokens=60)
        return str(response.json()["choices"][0]["message"]["content"])

    assert answer(5) == answer(5) != answer(6)


def test_reasoning_effort_reaches_the_prompt(world: World) -> None:
    def prompt_tokens(effort: str) -> int:
        return int(world.ask("say: a", reasoning_effort=effort).json()["usage"]["prompt_tokens"])

    assert prompt_tokens("medium") - prompt_tokens("low") == len("medium") - len("low")
    response = world.ask("say: a", reasoning_effort="none")
    assert response.json()["error"]["param"] == "reasoning_effort"


def test_another_organisations_cache_is_not_seen(world: World, tmp_path: Path) -> None:
    """The salt is the organisation's; here the client can only split its own cache further."""

    def cached(**fields: Any) -> int:
        usage = world.ask("say: a " + "x" * 300, **fields).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert cached(prompt_cache_key="one") == 0
    assert cached(prompt_cache_key="one") > 0
    assert cached(prompt_cache_key="two") == 0


def test_a_failure_in_mid_stream_is_an_event_and_not_silence(tmp_path: Path) -> None:
    with running_world(tmp_path / "state") as world:
        steps = iter(range(1000))
        forward = world.runner.forward

        def failing(batch: Any) -> Any:
            if next(steps) > 12:
                raise RuntimeError("heap at 0xdeadbeef")
            return forward(batch)

        world.runner.forward = failing  # type: ignore[method-assign]
        *chunks, error = events_of(world.ask("count", stream=True))
        assert set(error) == {"error"}
        assert error["error"]["code"] == EngineFailed.code
        assert set(error["error"]) == {"message", "type", "param", "code"}
        assert chunks
        whole = world.ask("count")
        assert (whole.status_code, whole.json()["error"]["type"]) == (500, "server_error")
        for text in (json.dumps(error), whole.text, LOG.getvalue()):
            assert "0xdeadbeef" not in text


def test_an_unforeseen_error_is_told_by_its_request_id_only(tmp_path: Path) -> None:
    with running_world(tmp_path / "state") as world:

        async def broken(request: Any, **_options: Any) -> Any:
            raise ValueError(f"secret {world.key} in a prompt")

        world.provider.chat = broken  # type: ignore[method-assign]
        response = world.ask("hi")
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert response.headers["x-request-id"] in response.json()["error"]["message"]
        line = world.log_line("ValueError")
        assert "in a prompt" not in line
        assert "test_chat.py" in line


@pytest.fixture(scope="module")
def slow_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    state_dir = tmp_path_factory.mktemp("slow") / "state"
    with running_world(state_dir, ping_s=0.1, engine={"max_running": 1, "max_waiting": 1}) as world:
        yield world


def test_a_long_prefill_is_bridged_by_comments(slow_world: World) -> None:
    slow_world.runner.unblocked.clear()
    threading.Timer(0.6, slow_world.runner.unblocked.set).start()
    text = slow_world.ask("say: a", stream=True).text
    before, _, after = text.partition('"content":"a"')
    assert before.count(": ping\n\n") >= 3
    assert after.endswith("data: [DONE]\n\n")
    slow_world.wait_until_idle()


def test_a_full_queue_is_a_429_that_says_when_to_come_back(slow_world: World) -> None:
    slow_world.runner.unblocked.clear()
    statuses: list[int] = []

    def ask() -> None:
        response = httpx.post(
            f"{slow_world.url}/v1/chat/completions",
            json=asking("say: a"),
            headers={"authorization": f"Bearer {slow_world.key}"},
            timeout=60,
        )
        statuses.append(response.status_code)
        if response.status_code == 429:
            assert int(response.headers["retry-after-ms"]) >= 100
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "server_overloaded"
            assert response.json()["error"]["type"] == "rate_limit_error"

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    slow_world.runner.unblocked.set()
    for thread in threads:
        thread.join()
    assert len(statuses) == 6
    assert statuses.count(429) >= 3
    assert set(statuses) == {200, 429}
    slow_world.wait_until_idle()
