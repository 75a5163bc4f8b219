"""Tasks whose answers are generated and compared with the one that is right, on questions of `generated/`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from musespark.chat.messages import Image, Message, Text, Tool
from musespark.evals.generated.catalogue import samples
from musespark.evals.generated.sample import Sample, scoring_rng
from musespark.evals.model_under_test import Question, Sampler
from musespark.evals.task import Baselines, Outcome

BATCH = 64  # questions handed to the sampler at once


class ExactAnswers:
    """Right if the answer's text is the expected one; case, spaces around and a last full stop don't matter."""

    needs: Literal["sampler"] = "sampler"
    unit = "accuracy"

    def __init__(self, name: str, generator: str, count: int, *, seed: int = 0, max_tokens: int = 64) -> None:
        self.name = name
        self._generator = generator
        self._samples = list(samples(generator, scoring_rng(seed), count))
        self._max_tokens = max_tokens

    def baselines(self) -> Baselines:
        answers = Counter(plain(sample.text) for sample in self._samples)
        return Baselines(majority=answers.most_common(1)[0][1] / len(self._samples))

    def run(self, model: Sampler) -> Iterator[Outcome]:
        for number, sample, answer in _answered(model, self._samples, self._max_tokens):
            said = text_of(answer)
            details = {**_asked(sample), "expected": sample.text, "said": said}
            yield Outcome(f"{self._generator}-{number}", float(plain(said) == plain(sample.text)), details=details)


class FunctionCalls:
    """`validity`: is the answer a call of an offered function with arguments of its schema? `match`: the right one?"""

    needs: Literal["sampler"] = "sampler"
    unit = "accuracy"

    def __init__(
        self, name: str, measure: Literal["validity", "match"], count: int, *, seed: int = 0, max_tokens: int = 128
    ) -> None:
        self.name = name
        self._measure = measure
        self._samples = list(samples("one_call", scoring_rng(seed), count))
        self._max_tokens = max_tokens

    def baselines(self) -> Baselines:
        return Baselines(chance=0.0)

    def run(self, model: Sampler) -> Iterator[Outcome]:
        for number, sample, answer in _answered(model, self._samples, self._max_tokens):
            said, expected = _calls(answer), _calls(sample.answer)
            right = said == expected if self._measure == "match" else bool(said) and all_valid(said, sample.tools)
            details = {**_asked(sample), "expected": expected, "said": said or text_of(answer)}
            yield Outcome(f"one_call-{number}", float(right), details=details)


def plain(text: str) -> str:
    return text.strip().removesuffix(".").casefold()


def text_of(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, Text))


def all_valid(calls: Sequence[tuple[str, Any]], tools: Sequence[Tool]) -> bool:
    """Do all calls name an offered function, with the arguments that its schema has, of their types?"""
    schemas = {tool.name: tool.parameters for tool in tools}
    return all(name in schemas and fits(arguments, schemas[name]) for name, arguments in calls)


def fits(arguments: Any, schema: Any) -> bool:
    """Of the keywords that the generated functions use: type, properties, required, enum."""
    kinds = {"string": str, "integer": int, "boolean": bool, "number": int | float}
    properties = schema["properties"]
    if not isinstance(arguments, dict) or not set(schema["required"]) <= set(arguments) <= set(properties):
        return False
    for name, value in arguments.items():
        kind = kinds[properties[name]["type"]]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return False
        if value not in properties[name].get("enum", [value]):
            return False
    return True


def _calls(message: Message) -> list[tuple[str, Any]]:
    """Names and arguments; arguments that are no JSON stay text, which no schema of an object accepts."""
    calls: list[tuple[str, Any]] = []
    for call in message.tool_calls:
        try:
            calls.append((call.name, json.loads(call.arguments)))
        except ValueError:
            calls.append((call.name, call.arguments))
    return calls


def _answered(model: Sampler, asked: list[Sample], max_tokens: int) -> Iterator[tuple[int, Sample, Message]]:
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        questions = [Question(sample.messages, sample.tools) for sample in batch]
        answers = model.answers(questions, max_tokens=max_tokens)
        yield from zip(range(start, start + len(batch)), batch, answers, strict=True)


def _asked(sample: Sample) -> dict[str, Any]:
    """The last question's text, cut where it is long, and whether it shows pictures."""
    parts = sample.messages[-1].content
    text = "".join(part.text for part in parts if isinstance(part, Text))
    shown = text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"
    return {"question": shown, "images": sum(isinstance(part, Image) for part in parts)}
