"""Every pair of the engine's features, over a real network on the native core: what must never change an answer.

A row of the matrix asks the same thing twice: of a plain engine (alone, cold, in one piece, one thread, no guesses),
and of one with the row's features. Also run as a program, by `python -O`, where `assert` is no more than a comment.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from musespark.chat.tokenizer import Tokenizer
from musespark.engine.engine import Engine
from musespark.engine.grammar import Grammar, Vocabulary
from musespark.engine.native import NativeRunner
from musespark.engine.output import TextOutput
from musespark.engine.request import Request
from musespark.model.checkpoint import open_checkpoint, save_checkpoint
from musespark.model.network import build_network
from musespark.model.presets import preset
from tests.engine.driver import Driver, picture, request

# What an answer may depend on, and what it may not.
ASKED = ("int8_kv", "image", "grammar", "penalties", "sampled", "logprobs", "stop_string", "choices")
RUN = ("guesses", "warm", "chunked", "threads", "neighbours", "preempted")
FEATURES = ASKED + RUN
NOT_ALONE = {"choices", "neighbours", "preempted"}
TOKENIZER = Tokenizer.bytes_only()
END = TOKENIZER.special("<|eot|>")
CONFIG = preset("toy")
UNSAYABLE = TOKENIZER.special_ids - {END}
MAX_TOKENS = 40

Row = frozenset[str]  # the features that are on


@cache
def rows() -> tuple[Row, ...]:
    """Few rows in which every pair of features is on and on, on and off, off and on, off and off.

    And one with all that can be on while a stream is alone, for only such a one is guessed at.
    """
    settings = list(itertools.product((False, True), repeat=2))
    left = {(a, b, x, y) for a, b in itertools.combinations(range(len(FEATURES)), 2) for x, y in settings}
    random = np.random.default_rng(0)
    chosen: list[np.ndarray] = []
    while left:
        tries = random.integers(0, 2, (300, len(FEATURES))).astype(bool)
        chosen.append(max(tries, key=lambda row: len(_pairs(row) & left)))
        left -= _pairs(chosen[-1])
    covering = [frozenset(name for name, on in zip(FEATURES, row, strict=True) if on) for row in chosen]
    return (*covering, frozenset(FEATURES) - NOT_ALONE)


def _pairs(row: Sequence[bool] | np.ndarray) -> set[tuple[int, int, bool, bool]]:
    return {(a, b, bool(row[a]), bool(row[b])) for a, b in itertools.combinations(range(len(FEATURES)), 2)}


@cache
def checkpoint() -> Path:
    """A network of random weights as sharp as a trained one, which lives as long as the process."""
    torch.manual_seed(0)
    network = build_network(CONFIG)
    with torch.no_grad():
        network.head.weight.mul_(60)
    folder = Path(tempfile.mkdtemp(prefix="feature-matrix-")) / "checkpoint"
    save_checkpoint(folder, CONFIG, network.state_dict())
    return folder


@cache
def letters() -> Grammar:
    return Grammar(Vocabulary(TOKENIZER, {END}), "start: /[a-f]{6}(-[a-z]{4}){3}/")


class HalfRight:
    """Guesses the answer that is known already, every second time spoiled somewhere."""

    def __init__(self, known: Sequence[int]) -> None:
        self.known = list(known)
        self.num_read = 0
        self.calls = 0

    def propose(self, new: Sequence[int], most: int) -> Sequence[int]:
        self.num_read += len(new)
        self.calls += 1
        guess = self.known[self.num_read : self.num_read + most]
        if guess and self.calls % 2:
            guess[self.calls % len(guess)] ^= 1
        return guess


def asked(row: Row, stop: str = "") -> Request:
    fields: dict[str, Any] = {"salt": b"mine"}
    ids = np.random.default_rng(3).integers(32, 127, 90).tolist()
    if "image" in row:
        fields |= {"images": (picture(6),), "image_spans": ((60, 66),)}
        ids[60:66] = [CONFIG.image_token_id] * 6
    if "grammar" in row:
        fields |= {"grammar": letters(), "stop_token_ids": frozenset({END})}
    if "penalties" in row:
        fields |= {
            "repetition_penalty": 1.3,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.1,
            "logit_bias": {101: 1.0},
        }
    if "sampled" in row:
        fields |= {"temperature": 0.9, "seed": 5, "top_p": 0.95}
    if "logprobs" in row:
        fields |= {"logprobs": 2}
    if "choices" in row:
        fields |= {"n": 3}
    return request(ids, MAX_TOKENS, make_output=lambda index: TextOutput(TOKENIZER, [stop] if stop else []), **fields)


def answers(driver: Driver, new: Request) -> dict[int, Any]:
    """For each choice its text, its tokens with their log-probabilities, and why it ended; and the usage."""
    seen = driver.submit(new)
    driver.run()
    if seen.error is not None:
        raise AssertionError(f"the request failed: {seen.error}")
    found: dict[int, Any] = {}
    for index, reason in seen.reasons.items():
        deltas: list[Any] = list(seen.tokens[index])
        tokens = [token for delta in deltas for token in delta.tokens]
        found[index] = ("".join(delta.text for delta in deltas), tokens, reason)
    usage = seen.usage
    if usage is None:
        raise AssertionError("there is no usage")
    return found | {-1: (usage.prompt_tokens, usage.completion_tokens, usage.image_tokens)}


def plain(row: Row) -> Driver:
    """An engine without any feature but that which changes the numbers themselves."""
    return Driver(engine(row & {"int8_kv"}))


def engine(row: Row, known: Sequence[int] = ()) -> Engine:
    # With few pages the request and its neighbours take each other's; alone it has enough.
    pages = 7 if "preempted" in row else 40
    runner = NativeRunner(
        open_checkpoint(checkpoint()),
        precision="int8",
        kv_precision="int8" if "int8_kv" in row else None,
        num_full_pages=pages,
        num_sliding_pages=pages,
        num_threads=2 if "threads" in row else 1,
    )
    times = itertools.count()
    return Engine(
        runner,
        max_batch_tokens=17 if "chunked" in row else 512,
        suppressed_token_ids=UNSAYABLE,
        max_draft_tokens=6 if "guesses" in row else 0,
        make_drafter=lambda: HalfRight(known),
        clock=lambda: float(next(times)),  # every step takes as long, so any right guess pays
    )


def plain_answer(row: Row) -> tuple[str, dict[int, Any], list[int]]:
    """A stop string that comes in the plain answer, if one is wanted, what is answered with it, and the tokens."""
    first = answers(plain(row), asked(row))
    text, tokens, _ = first[0]
    known = [*asked(row).prompt, *(token.id for token in tokens)]
    if "stop_string" not in row:
        return "", first, known
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    return stop, answers(plain(row), asked(row, stop)), known


def difference(row: Row) -> tuple[str | None, Engine]:
    """What the features of a row change, in words; None as it should be. And the engine, for its counts."""
    stop, expected, known = plain_answer(row)
    under_test = engine(row, known)
    driver = Driver(under_test)
    if "guesses" in row:
        driver.submit(request([40, 41], 4))  # so that the time of a plain step is known
        driver.run()
    if "warm" in row:
        answers(driver, asked(row, stop))
    if "neighbours" in row or "preempted" in row:
        for seed in range(3):
            others = np.random.default_rng(seed + 10).integers(32, 127, 70).tolist()
            driver.submit(request(others, 20 + 30 * ("preempted" in row), temperature=1.0, seed=seed))
    got = answers(driver, asked(row, stop))
    under_test.check_integrity()
    under_test.close()
    return None if got == expected else f"{sorted(row)}: {got} instead of {expected}", under_test


def problems() -> Iterator[str]:
    for row in rows():
        found, _ = difference(row)
        if found is not None:
            yield found


if __name__ == "__main__":
    found = list(problems())
    print("\n".join(found) or f"{len(rows())} rows are equal")
    raise SystemExit(bool(found))
