"""Tasks that compare probabilities: BLiMP's sentences, and answers to questions by length-normalised log-probability.

A choice's score is ln P(choice | question) / its bytes: without the division short choices would win. Sentences of a
BLiMP pair have about equal lengths and are compared as they are, as published.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from musespark.chat.prompt import Prompt
from musespark.evals.benchmarks import MultipleChoice, Pair, read_choices, read_pairs
from musespark.evals.model_under_test import Scorer
from musespark.evals.task import Baselines, Outcome, Source

# How a set's question goes on to an answer. OpenBookQA's are unfinished sentences.
TEMPLATES = {"openbookqa": "{question}"}
QUESTION_ANSWER = "Question: {question}\nAnswer:"


class SentencePairs:
    """BLiMP: does the model find the grammatical sentence likelier? Every n-th pair if limited, of all paradigms."""

    needs: Literal["scorer"] = "scorer"
    unit = "accuracy"

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        pairs: list[Pair] = list(read_pairs(source.data / "bench" / f"{name}.jsonl.zst"))
        self._pairs = pairs[:: max(1, math.ceil(len(pairs) / source.limit))] if source.limit else pairs

    def baselines(self) -> Baselines:
        return Baselines(chance=0.5)

    def run(self, model: Scorer) -> Iterator[Outcome]:
        tokenizer = model.tokenizer
        begin = Prompt([tokenizer.special("<|begin_of_text|>")])
        for pair in self._pairs:
            good, bad = model.log_probs(begin, [tokenizer.encode(pair.good), tokenizer.encode(pair.bad)])
            details = {"good": pair.good, "bad": pair.bad, "log_probs": [good, bad], "field": pair.field}
            yield Outcome(pair.id, float(good > bad), pair.paradigm, details=details)


class Choices:
    """A question with answers to choose from."""

    needs: Literal["scorer"] = "scorer"
    unit = "accuracy"

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        rows = read_choices(source.data / "bench" / f"{name}.jsonl.zst")
        self._items: list[MultipleChoice] = list(islice(rows, source.limit))

    def baselines(self) -> Baselines:
        chance = math.fsum(1 / len(item.choices) for item in self._items) / len(self._items)
        commonest = Counter(item.answer for item in self._items).most_common(1)[0][1]
        return Baselines(chance, commonest / len(self._items))

    def run(self, model: Scorer) -> Iterator[Outcome]:
        template = TEMPLATES.get(self.name, QUESTION_ANSWER)
        for item in self._items:
            question = template.format(question=item.question)
            log_probs = text_log_probs(model, question, [f" {choice}" for choice in item.choices])
            scores = [s / len(choice.encode()) for s, choice in zip(log_probs, item.choices, strict=True)]
            chosen = scores.index(max(scores))
            details = {"question": question, "choices": item.choices, "expected": item.answer, "chosen": chosen}
            yield Outcome(item.id, float(chosen == item.answer), details=details | {"log_probs": log_probs})


def text_log_probs(model: Scorer, context: str, endings: list[str]) -> list[float]:
    """ln P(ending | context), tokenised as one text: the words of an ending may share a token with the context."""
    tokenizer = model.tokenizer
    begin = tokenizer.special("<|begin_of_text|>")
    wholes = [tokenizer.encode(context + ending) for ending in endings]
    alone = tokenizer.encode(context)
    shared = min(_common_prefix(alone, whole) for whole in wholes)
    prompt = Prompt([begin, *alone[:shared]])
    if shared == len(alone):
        return model.log_probs(prompt, [whole[shared:] for whole in wholes])
    # The border moved: what of the context lies behind it is taken away again, so that only endings are compared.
    rest = model.log_probs(prompt, [alone[shared:], *(whole[shared:] for whole in wholes)])
    return [value - rest[0] for value in rest[1:]]


def _common_prefix(a: list[int], b: list[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
