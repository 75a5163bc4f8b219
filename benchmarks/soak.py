"""Random load for a long time: everybody gets an end, every page comes back, and memory stays flat.

    .venv/bin/python benchmarks/soak.py [--seconds 1800] [--epoch 60] [--clients 24] [--seed 1]

Clients send requests to an engine with the model in the box, in this process: long and short prompts with common
beginnings, pictures, several choices, every kind of sampling, grammars, allowances that grow or end, priorities and
tenants; some leave in the middle. Every epoch has an engine of its own, with a random and mostly tiny memory for
contexts, so that requests are preempted, refused and recomputed. At the end of an epoch every page must be free, the
books must balance, and a few greedy answers are computed again, alone, and must be the same. Prints a line an epoch
and, as the last line, one JSON document; ends with status 1 if memory has grown by more than 5 % since the first third.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musespark.api.memory import return_large_blocks
from musespark.chat.formats import open_tokenizer
from musespark.chat.images import PatchedImage
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.allowance import Allowance
from musespark.engine.engine import Engine
from musespark.engine.grammar import Grammar, Vocabulary
from musespark.engine.machine_memory import resident_bytes
from musespark.engine.native import NativeRunner
from musespark.engine.output import TextOutput
from musespark.engine.request import (
    AllowanceEvent,
    FinishReason,
    Request,
    SampledToken,
    SamplingParams,
    TokenEvent,
)
from musespark.engine.service import EngineService, Generation
from musespark.errors import ContextTooLong, Overloaded
from musespark.model.checkpoint import BUNDLED, Checkpoint, open_checkpoint

GROWTH = 1.05
PATCH_FLOATS = 588
IDS = itertools.count()


class TokenOutput:
    """Deltas are the tokens themselves."""

    reasoning_tokens = 0

    def __init__(self) -> None:
        self._new: list[object] = []

    def push(self, token: SampledToken) -> FinishReason | None:
        self._new.append(token.id)
        return None

    def finish(self, stop_token: int | None) -> None:
        pass

    def take(self) -> list[object]:
        new, self._new = self._new, []
        return new


@dataclass(slots=True)
class Load:
    """What requests are made of, and what became of them."""

    chance: random.Random
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    grammars: list[Grammar]
    counts: Counter[str] = field(default_factory=Counter)
    greedy: list[tuple[Request, list[int]]] = field(default_factory=list)  # whole greedy answers, to be checked

    @property
    def end_id(self) -> int:
        return self.tokenizer.special("<|eot|>")

    def tokens(self, seed: int, length: int) -> list[int]:
        return [int(token) for token in np.random.default_rng(seed).integers(300, 4000, length)]

    def request(self, context: int) -> Request:
        chance = self.chance
        head = self.tokens(chance.randrange(4), 64 * chance.randrange(6)) if chance.random() < 0.5 else []
        length = chance.choice([1, 5, 50, 50, 200, chance.randrange(1, context)])
        prompt = head + self.tokens(chance.randrange(1000), length)
        images: list[PatchedImage] = []
        spans: list[tuple[int, int]] = []
        if chance.random() < 0.15:
            for _ in range(chance.randrange(1, 3)):
                image = self.image()
                at = len(prompt)
                prompt += [self.checkpoint.config.image_token_id] * image.num_tokens + self.tokens(1, 3)
                images.append(image)
                spans.append((at, at + image.num_tokens))
        greedy = chance.random() < 0.4
        sampling = {"temperature": 0.0} if greedy else self.sampling()
        plain = greedy or chance.random() < 0.5
        grammar = chance.choice(self.grammars) if chance.random() < 0.1 and not greedy else None
        if grammar is not None:
            sampling |= {"ignore_eos": False, "stop_token_ids": frozenset({self.end_id})}
        return Request(
            id=f"r{next(IDS)}",
            prompt=tuple(prompt),
            images=tuple(images),
            image_spans=tuple(spans),
            sampling=SamplingParams(max_tokens=chance.choice([1, 8, 40, 40, 150]), **({"ignore_eos": True} | sampling)),
            make_output=(lambda _: TokenOutput()) if plain else (lambda _: TextOutput(self.tokenizer, ["e t", "\n\n"])),
            salt=chance.choice([b"one", b"two"]),
            tenant=chance.choice(["one", "one", "one", "two", "three"]),
            n=chance.choice([1, 1, 1, 2, 4]),
            priority=chance.choice([0, 0, 0, 1, -1]),
            grammar=grammar,
            allowance=Allowance(chance.randrange(20), final=chance.random() < 0.2) if chance.random() < 0.3 else None,
        )

    def sampling(self) -> dict[str, Any]:
        chance = self.chance
        fields = {
            "temperature": [0.0, 0.7, 1.0, 2.0],
            "top_p": [1.0, 0.9, 0.1],
            "top_k": [0, 1, 40],
            "min_p": [0.0, 0.1],
            "frequency_penalty": [0.0, 0.0, 1.0],
            "repetition_penalty": [1.0, 1.0, 1.3],
            "logprobs": [None, None, 0, 5],
            "seed": [None, 7],
        }
        return {name: chance.choice(values) for name, values in fields.items()}

    def image(self) -> PatchedImage:
        chance = self.chance
        rows, columns = chance.choice([(1, 1), (2, 3), (5, 5), (8, 12), (16, 16)])
        seed = chance.randrange(6)
        patches = np.random.default_rng(seed).standard_normal((4 * rows * columns, PATCH_FLOATS), dtype=np.float32)
        return PatchedImage(patches, (2 * rows, 2 * columns), f"{seed} {rows} {columns}".encode().ljust(32, b"."))


async def client(service: EngineService, load: Load, end_s: float) -> None:
    """One request after the other, some of which are left in the middle."""
    while time.monotonic() < end_s:
        request = load.request(service.context_length)
        generation = service.generate(request)
        leave_after = load.chance.randrange(30) if load.chance.random() < 0.25 else None
        try:
            await asyncio.wait_for(_read(generation, request, load, leave_after), 120)
        except (Overloaded, ContextTooLong) as refusal:
            load.counts[refusal.code] += 1
            await asyncio.sleep(load.chance.random() / 50)


async def _read(generation: Generation, request: Request, load: Load, leave_after: int | None) -> None:
    tokens: list[int] = []
    num_events = 0
    async with contextlib.aclosing(generation):
        async for event in generation:
            if isinstance(event, AllowanceEvent) and request.allowance is not None:
                more = request.allowance.granted + load.chance.randrange(1, 40)
                final = load.chance.random() < 0.2
                asyncio.get_running_loop().call_later(
                    load.chance.random() / 100, _grant, request.allowance, more, final
                )
            elif isinstance(event, TokenEvent) and event.index == 0:
                tokens += [delta for delta in event.deltas if isinstance(delta, int)]
            num_events += 1
            if num_events == leave_after:
                break
    usage = generation.usage
    assert usage is not None, "every request has an end and a usage"
    assert request.allowance is None or usage.completion_tokens <= request.allowance.granted
    assert usage.cached_tokens <= usage.prompt_tokens <= len(request.prompt)
    load.counts["left" if num_events == leave_after else "answered"] += 1
    load.counts["tokens"] += usage.completion_tokens
    whole = len(tokens) == request.sampling.max_tokens
    if whole and request.sampling.temperature == 0 and request.grammar is None and not request.sampling.penalises:
        load.greedy.append((request, tokens))


def _grant(allowance: Allowance, total: int, final: bool) -> None:
    if not allowance.final:
        allowance.grant(max(total, allowance.granted), final=final)


async def _check_greedy(service: EngineService, load: Load) -> None:
    """Some answers once more, alone: the same to the token."""
    for request, expected in load.chance.sample(load.greedy, min(3, len(load.greedy))):
        tokens: list[int] = []
        again = Request(
            id=f"r{next(IDS)}",
            prompt=request.prompt,
            images=request.images,
            image_spans=request.image_spans,
            sampling=request.sampling,
            make_output=lambda _: TokenOutput(),
        )
        async for event in service.generate(again):
            if isinstance(event, TokenEvent):
                tokens += [delta for delta in event.deltas if isinstance(delta, int)]
        assert tokens == expected, "the same prompt gives the same tokens, whatever else runs"
        load.counts["checked"] += 1
    load.greedy.clear()


async def epoch(load: Load, num_clients: int, seconds: float) -> None:
    """One engine, from empty to empty. Raises AssertionError or EngineFailed if anything is left over or wrong."""
    chance = load.chance
    pages = chance.choice([12, 20, 40, 200])
    runner = NativeRunner(load.checkpoint, num_full_pages=pages, num_sliding_pages=pages, num_threads=2)
    engine = Engine(
        runner,
        max_batch_tokens=chance.choice([16, 64, 512]),
        max_running=chance.choice([1, 4, 16]),
        max_waiting=chance.choice([1, 8, 64]),
        max_pixel_bytes=chance.choice([1 << 20, 64 << 20]),
        image_cache_bytes=chance.choice([0, 1 << 20]),
        decode_latency_target_s=chance.choice([0.002, 0.2]),
        suppressed_token_ids=load.tokenizer.special_ids - {load.end_id},
    )
    service = EngineService(engine)
    end_s = time.monotonic() + seconds
    await asyncio.gather(*(client(service, load, end_s) for _ in range(num_clients)))
    await _check_greedy(service, load)
    stats = service.stats
    assert not engine.has_work, "nothing is left to do"
    assert stats.full_pages.used == stats.sliding_pages.used == 0, "every page is free or cached"
    load.counts["preemptions"] += stats.num_preemptions_total
    load.counts["failed"] += stats.num_failed_total
    engine.check_integrity()
    await service.close(10)


def run(seconds: float, epoch_s: float, num_clients: int, seed: int) -> Iterator[dict[str, float]]:
    """The figures after each epoch."""
    return_large_blocks()  # as `serve` does
    checkpoint, tokenizer = open_checkpoint(BUNDLED.resolve()), open_tokenizer(BUNDLED.resolve())
    vocabulary = Vocabulary(tokenizer, [tokenizer.special("<|eot|>")])
    grammars = [Grammar(vocabulary, text) for text in ('start: "yes" | "no"', "start: /[a-z ]{5,60}/")]
    load = Load(random.Random(seed), checkpoint, tokenizer, grammars)
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        asyncio.run(epoch(load, num_clients, min(epoch_s, left_s)))
        yield {"resident_mib": resident_bytes() / 2**20, **load.counts}
    vocabulary.close()


def has_grown(memory: list[float]) -> bool:
    """Whether the last third of the epochs takes more than the first third did at the most: by medians, 5 % or more."""
    third = max(1, len(memory) // 3)
    return statistics.median(memory[-third:]) > GROWTH * max(memory[:third])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--epoch", type=float, default=60)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    for row in run(arguments.seconds, arguments.epoch, arguments.clients, arguments.seed):
        rows.append(row)
        print(" ".join(f"{name} {value:,.0f}" for name, value in row.items()), flush=True)
    memory = [row["resident_mib"] for row in rows]
    grown = has_grown(memory)
    print(json.dumps({"benchmark": "soak", "epochs": len(rows), "grown": grown, "memory_mib": memory, **rows[-1]}))
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
