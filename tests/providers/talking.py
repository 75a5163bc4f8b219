"""A model that does what its user says, for tests of providers and of the API: all is real but the weights.

`TalkingRunner` keeps token ids in its pages and reads them back through the block tables, so a wrong page changes what
it says. What the user writes is the script:

    say: HELLO             -> HELLO
    think: A; say: HELLO   -> A as reasoning, then HELLO
    write: TOKENS          -> these tokens, control tokens by their names: ` to=user<|message|>HELLO`
    count                  -> 0123456789012… until it is stopped
    anything else          -> I read N bytes and M image tokens.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from musespark.chat.formats import make_format
from musespark.chat.images import PatchedImage
from musespark.chat.settings import ChatSettings
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.engine import Engine
from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch, Float32, WholeImage
from musespark.engine.service import EngineService
from musespark.model.config import ModelConfig
from musespark.model.generation import GenerationDefaults
from musespark.providers.base import ModelInfo
from musespark.providers.local import LocalProvider
from tests.fakes import toy_config

TOKENIZER = Tokenizer.bytes_only()
START, MESSAGE, EOM, EOT, PATCH = (
    TOKENIZER.special(f"<|{name}|>") for name in ("start", "message", "eom", "eot", "patch")
)
CONFIDENCE = 30.0  # the scripted token's logit; the others have 0


class TalkingRunner:
    def __init__(self, *, num_full_pages: int = 512, num_sliding_pages: int = 256, delay_s: float = 0.0) -> None:
        self.config: ModelConfig = toy_config(max_position_embeddings=4096)
        self.num_full_pages = num_full_pages
        self.num_sliding_pages = num_sliding_pages
        self.delay_s = delay_s
        self.unblocked = threading.Event()
        self.unblocked.set()
        self.closed = False
        self._pages = np.full((num_full_pages, PAGE_SIZE), -1, dtype=np.int64)

    def forward(self, batch: Batch) -> Float32:
        self.unblocked.wait(60)
        time.sleep(self.delay_s)
        logits = np.zeros((len(batch.logit_rows), self.config.text.vocab_size), dtype=np.float32)
        for s in range(len(batch.query_start) - 1):
            rows = np.arange(batch.query_start[s], batch.query_start[s + 1])
            table = batch.full_block_table[s]
            positions = batch.positions[rows]
            self._pages[table[positions // PAGE_SIZE], positions % PAGE_SIZE] = batch.token_ids[rows]
            for line, row in enumerate(batch.logit_rows):
                if row in rows:
                    seen = np.arange(batch.positions[row] + 1)
                    pages = table[seen // PAGE_SIZE]
                    assert (pages != NO_PAGE).all()
                    logits[line, next_token(self._pages[pages, seen % PAGE_SIZE].tolist())] = CONFIDENCE
        return logits

    def encode_image(self, image: PatchedImage) -> Float32:
        return np.zeros((image.num_tokens, self.config.text.hidden_size), dtype=np.float32)

    def start_image(self, image: PatchedImage) -> WholeImage:
        return WholeImage(self.encode_image, image)

    def close(self) -> None:
        self.closed = True


def next_token(tokens: list[int]) -> int:
    """What the model says after `tokens`, a prompt and the beginning of the reply."""
    assert -1 not in tokens, "read a page that was never written"
    opening = [START, *TOKENIZER.encode("assistant")]
    prompt_end = len(tokens) - tokens[::-1].index(EOT) + len(opening)
    said = len(tokens) - prompt_end
    if said < 0:  # past its own end, as with ignore_eos
        return ord("x") + 32
    reply = reply_to(tokens[: prompt_end - len(opening)])
    return reply[said] if said < len(reply) else reply[-10 + (said - len(reply)) % 10]


def spelled(text: str) -> list[int]:
    """Tokens of a text in which control tokens stand by their names."""
    parts = re.split(r"(<\|\w+\|>)", text)
    return [i for k, part in enumerate(parts) for i in ([TOKENIZER.special(part)] if k % 2 else TOKENIZER.encode(part))]


def reply_to(conversation: list[int]) -> list[int]:
    last = conversation[len(conversation) - conversation[::-1].index(MESSAGE) :]
    text = TOKENIZER.decode(last)
    if text.startswith("write: "):
        return [*spelled(text.removeprefix("write: ")), EOT]
    thought = None
    if text.startswith("think: "):
        thought, _, text = text.removeprefix("think: ").partition("; ")
    if text.startswith("say: "):
        answer = [*TOKENIZER.encode(text.removeprefix("say: ")), EOT]
    elif text == "count":
        answer = TOKENIZER.encode("0123456789")
    else:
        num_image_tokens = conversation.count(PATCH)
        answer = [*TOKENIZER.encode(f"I read {len(text.encode())} bytes and {num_image_tokens} image tokens."), EOT]
    header = [*TOKENIZER.encode(" to=user"), MESSAGE]
    if thought is None:
        return header + answer
    thinking = [*TOKENIZER.encode(" to=self"), MESSAGE, *TOKENIZER.encode(thought), EOM]
    return [*thinking, START, *TOKENIZER.encode("assistant"), *header, *answer]


def talking_engine(runner: TalkingRunner, **options: int) -> Engine:
    sayable = {START, MESSAGE, EOM, EOT}
    text = runner.config.text
    silent = {*(TOKENIZER.special_ids - sayable), *range(TOKENIZER.vocab_size, text.vocab_size)}
    return Engine(runner, suppressed_token_ids=silent, **options)


def talking_provider(service: EngineService) -> LocalProvider:
    return LocalProvider(
        service,
        TOKENIZER,
        make_format("muse_spark", TOKENIZER, ChatSettings(default_reasoning_effort="low")),
        GenerationDefaults((EOT,)),
        ModelInfo("talking", 1_700_000_000, "tests", "fp_talking"),
    )


@contextmanager
def closing(service: EngineService, provider: LocalProvider) -> Iterator[None]:
    """For tests without an event loop of their own at the end."""
    import asyncio

    try:
        yield
    finally:
        asyncio.run(service.close(0.0))
        provider.close()
