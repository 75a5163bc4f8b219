"""A client for many streams at once that takes little of the machine: one coroutine each, HTTP read as bytes.

The same for every server. It speaks to 127.0.0.1 only, and every load has a number of requests and a time limit.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comparison import percentile

HOST = "127.0.0.1"
LIMIT_S = 240.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed completion. Seconds from the request; tokens as the server counts them."""

    first_s: float
    last_s: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """What clients did: completion tokens a second of all together, and percentiles of the time to the first token."""

    tokens_per_s: float
    first_p50_s: float
    first_p99_s: float
    prompt_tokens: float
    requests: int

    @classmethod
    def of(cls, answers: Sequence[Answer], seconds: float) -> Load:
        first = [answer.first_s for answer in answers]
        return cls(
            tokens_per_s=sum(answer.completion_tokens for answer in answers) / seconds,
            first_p50_s=percentile(first, 50),
            first_p99_s=percentile(first, 99),
            prompt_tokens=sum(answer.prompt_tokens for answer in answers) / len(answers),
            requests=len(answers),
        )


async def complete(port: int, key: str, body: dict[str, Any]) -> Answer:
    """Raises RuntimeError for anything but a whole stream with usage."""
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 20)
    try:
        writer.write(head.encode() + data)
        await writer.drain()
        status = (await reader.readline()).decode()
        if " 200 " not in status:
            raise RuntimeError(f"{status.strip()}: {(await reader.read(2000)).decode(errors='replace')}")
        return await _stream(reader, begun)
    finally:
        writer.close()


async def _stream(reader: asyncio.StreamReader, begun: float) -> Answer:
    first = None
    usage: dict[str, Any] | None = None
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            break
        if first is None and _says_something(line):
            first = time.perf_counter() - begun
        if b'"usage"' in line:
            usage = json.loads(line[6:]).get("usage") or usage
    seconds = time.perf_counter() - begun
    if usage is None:
        raise RuntimeError("a stream ended without its usage")
    return Answer(first or seconds, seconds, usage["prompt_tokens"], usage["completion_tokens"])


def _says_something(line: bytes) -> bool:
    """Whether the event has a piece of the answer; the first ones may have a role only."""
    choices = json.loads(line[6:]).get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return any(delta.get(name) for name in ("content", "reasoning", "reasoning_content"))


def run_load(
    port: int, key: str, model: str, prompts: Sequence[str], max_tokens: int, num_clients: int
) -> tuple[Load, list[Answer]]:
    """`num_clients` clients send the prompts, each its next one when the last is answered."""
    return asyncio.run(_run_load(port, key, model, prompts, max_tokens, num_clients))


async def _run_load(
    port: int, key: str, model: str, prompts: Sequence[str], max_tokens: int, num_clients: int
) -> tuple[Load, list[Answer]]:
    left = list(reversed(prompts))
    answers: list[Answer] = []

    async def client() -> None:
        while left:
            message = {"role": "user", "content": left.pop()}
            body = {"model": model, "messages": [message], "max_tokens": max_tokens}
            answers.append(await complete(port, key, body | {"temperature": 0.0, "ignore_eos": True}))

    begun = time.perf_counter()
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())
    return Load.of(answers, time.perf_counter() - begun), answers


def words(choose_from: Sequence[str], count: int, seed: int) -> str:
    """A text of `count` words, each one token of the models' tokenizer."""
    return "".join(random.Random(seed).choices(choose_from, k=count)).lstrip()


def one_token_words(vocab: dict[str, int], encode: Callable[[str], list[int]]) -> list[str]:
    """Words with their space before them that are a single token wherever they stand."""
    found = [token for token in vocab if token[0] == "Ġ" and token[1:].isascii() and token[1:].islower()]
    spelled = [" " + token[1:] for token in found if token[1:].isalpha()]
    return [word for word in spelled[:3000] if len(encode(f"x{word}{word}")) == 3]
