"""How likely a local checkpoint finds text: the `Scorer` of the evals room over a runner, without the engine's loop.

Whole pages of the prompt are computed once and shared by all continuations, as the engine's prefix cache would. Only
while nothing else uses the runner: pages are taken from the front without asking anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from musespark.chat.formats import ChatFormat
from musespark.chat.messages import Message
from musespark.chat.prompt import Prompt
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.runner import NO_PAGE, PAGE_SIZE, Batch, Float32, Runner
from musespark.errors import ContextTooLong

MAX_ROWS = 512  # tokens of one step; whole pages


@dataclass(frozen=True, slots=True)
class _Sequence:
    """One continuation: all tokens that are computed for it, from position `start`, and its pages from position 0."""

    start: int
    tokens: list[int]
    targets: list[int]  # what the last len(targets) tokens should be followed by
    pages: list[int]


class LocalScorer:
    def __init__(self, runner: Runner, tokenizer: Tokenizer, chat: ChatFormat) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._chat = chat
        self._num_pages = min(n for n in (runner.num_full_pages, runner.num_sliding_pages) if n)
        self._most_tokens = min(self._num_pages * PAGE_SIZE, runner.config.text.max_position_embeddings)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def render(self, messages: Sequence[Message]) -> Prompt:
        return self._chat.render(messages)

    def reply(self, text: str) -> list[int]:
        return self._chat.reply(text)

    def log_probs(self, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[float]:
        """See `Scorer`. Raises ContextTooLong for more tokens than the model or the pages hold."""
        features = [self._runner.encode_image(image) for image in prompt.images]
        shared = (len(prompt.token_ids) - 1) // PAGE_SIZE * PAGE_SIZE  # its last token is computed with what follows
        front = list(range(shared // PAGE_SIZE))
        self._check_room(len(prompt.token_ids) + max(map(len, continuations)))
        if shared:
            self._score([_Sequence(0, prompt.token_ids[:shared], [], front)], prompt, features)
        found: list[float] = []
        for group in self._groups(prompt.token_ids[shared:], continuations, shared, front):
            found += self._score(group, prompt, features)
        return found

    def _check_room(self, length: int) -> None:
        if length > self._most_tokens:
            raise ContextTooLong(f"{length:,} tokens are to be scored; there is room for {self._most_tokens:,}")

    def _groups(
        self, rest: list[int], continuations: Sequence[Sequence[int]], shared: int, front: list[int]
    ) -> Iterator[list[_Sequence]]:
        """Sequences that fit into one step and into the pages; one that is longer than a step comes alone."""
        group: list[_Sequence] = []
        num_rows, next_page = 0, len(front)
        for continuation in continuations:
            tokens = [*rest, *continuation[:-1]]
            count = -(-len(tokens) // PAGE_SIZE)
            if group and (num_rows + len(tokens) > MAX_ROWS or next_page + count > self._num_pages):
                yield group
                group, num_rows, next_page = [], 0, len(front)
            pages = [*front, *range(next_page, next_page + count)]
            group.append(_Sequence(shared, tokens, list(continuation), pages))
            num_rows, next_page = num_rows + len(tokens), next_page + count
        if group:
            yield group

    def _score(self, group: list[_Sequence], prompt: Prompt, features: list[Float32]) -> list[float]:
        sums = [0.0] * len(group)
        for begin in range(0, max(len(sequence.tokens) for sequence in group), MAX_ROWS):
            batch, owners, targets = self._batch(group, begin, prompt, features)
            logits = self._runner.forward(batch)
            for owner, value in zip(owners, _log_softmax_at(logits, targets), strict=True):
                sums[owner] += float(value)
        return sums

    def _batch(
        self, group: list[_Sequence], begin: int, prompt: Prompt, features: list[Float32]
    ) -> tuple[Batch, list[int], list[int]]:
        """The next MAX_ROWS tokens of each sequence; for each logit row the sequence it belongs to and its target."""
        token_ids: list[int] = []
        positions: list[int] = []
        query_start = [0]
        logit_rows: list[int] = []
        owners: list[int] = []
        targets: list[int] = []
        embed_rows: list[int] = []
        embeds = [np.empty((0, self._runner.config.text.hidden_size), np.float32)]
        for number, sequence in enumerate(group):
            part = sequence.tokens[begin : begin + MAX_ROWS]
            first = len(token_ids)
            start = sequence.start + begin  # position of the part
            for (low, high), rows in zip(prompt.image_spans, features, strict=True):
                a, b = max(low, start), min(high, start + len(part))
                if a < b:
                    embed_rows += range(first + a - start, first + b - start)
                    embeds.append(rows[a - low : b - low])
            unscored = len(sequence.tokens) - len(sequence.targets)
            for i in range(max(begin, unscored), begin + len(part)):
                logit_rows.append(first + i - begin)
                owners.append(number)
                targets.append(sequence.targets[i - unscored])
            token_ids += part
            positions += range(start, start + len(part))
            query_start.append(len(token_ids))
        table = np.full((len(group), max(len(sequence.pages) for sequence in group)), NO_PAGE, np.int32)
        for line, sequence in zip(table, group, strict=True):
            line[: len(sequence.pages)] = sequence.pages
        batch = Batch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.array(positions, np.int64),
            query_start=np.array(query_start, np.int32),
            full_block_table=table,
            sliding_block_table=table.copy(),
            embed_rows=np.array(embed_rows, np.int32),
            embeds=np.concatenate(embeds),
            logit_rows=np.array(logit_rows, np.int32),
        )
        return batch, owners, targets


def _log_softmax_at(logits: Float32, targets: list[int]) -> np.ndarray:
    """(R,) float64: ln of the softmax of each row at its target."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True, initial=-np.inf)
    chosen: np.ndarray = rows[np.arange(len(targets)), targets] - np.log(np.exp(rows).sum(axis=1))
    return chosen
