"""Conversations that call functions: the right one of several, several at once, none, and what to say of a result.

The arguments are those that were said, by construction. Which functions are offered beside the right one is drawn, so
the name alone never tells.
"""

from __future__ import annotations

import json
from typing import Any

from musespark.chat.messages import Message, Text, Tool, ToolCall
from musespark.evals.generated.functions import FUNCTIONS, Function
from musespark.evals.generated.sample import Rng, Sample, pick, sentence

SMALL_TALK = (
    ("Hello!", "Hello! How can I help you today?"),
    ("Thank you.", "You are welcome!"),
    ("Who are you?", "I am Muse Spark nano, a small language model."),
    ("Good morning.", "Good morning! What can I do for you?"),
    ("What is the opposite of hot?", "Cold."),
    ("Say banana.", "banana"),
)


def tool_calls(rng: Rng) -> Sample:
    return pick((one_call, one_call, one_call, two_calls, no_call, result_told), rng)(rng)


def one_call(rng: Rng) -> Sample:
    function = pick(FUNCTIONS, rng)
    said, arguments, _ = _draw(function, rng)
    return Sample((_user(said),), _calling([(function, arguments)]), _offered([function], rng))


def two_calls(rng: Rng) -> Sample:
    """The same function for two things: calls in the order in which they were asked for."""
    function = pick([f for f in FUNCTIONS if len(f.schema) - len(f.more) == 1], rng)
    first, second = _draw(function, rng, optional=False), _draw(function, rng, optional=False)
    said = f"{first[0].rstrip('.?')}, and then: {second[0]}"
    return Sample((_user(said),), _calling([(function, first[1]), (function, second[1])]), _offered([function], rng))


def no_call(rng: Rng) -> Sample:
    """Functions are offered, but nothing is asked of them."""
    question, answer = pick(SMALL_TALK, rng)
    return Sample((_user(question),), Message("assistant", (Text(answer),)), _offered([], rng))


def result_told(rng: Rng) -> Sample:
    """The call was made and answered; now the user is told."""
    function = pick(FUNCTIONS, rng)
    said, arguments, words = _draw(function, rng)
    value, spoken = function.result(rng)
    calling = _calling([(function, arguments)])
    result = Message("tool", (Text(json.dumps(value)),), tool_call_id=calling.tool_calls[0].id, name=function.name)
    answer = sentence(function.answers.format(**words, result=spoken))
    return Sample((_user(said), calling, result), Message("assistant", (Text(answer),)), _offered([function], rng))


def _draw(function: Function, rng: Rng, *, optional: bool = True) -> tuple[str, dict[str, Any], dict[str, str]]:
    """What is said, the arguments that it means, and the words for them."""
    added = {name for name in function.more if optional and rng.random() < 0.3}
    drawn = {name: draw(rng) for name, draw in function.draws.items() if name not in function.more or name in added}
    words = {name: spoken for name, (_, spoken) in drawn.items()}
    ask = pick(function.asks, rng)
    tail = "".join(function.more[name] for name in function.more if name in added)
    mark = ask[-1] if ask[-1] in ".?" else ""
    said = (ask.removesuffix(mark) + tail + mark).format(**words)
    return sentence(said), {name: value for name, (value, _) in drawn.items()}, words


def _offered(needed: list[Function], rng: Rng) -> tuple[Tool, ...]:
    others = [function for function in FUNCTIONS if function not in needed]
    count = int(rng.integers(0 if needed else 1, 4))
    offered = [*needed, *(others[int(i)] for i in rng.permutation(len(others))[:count])]
    return tuple(offered[int(i)].tool for i in rng.permutation(len(offered)))


def _user(text: str) -> Message:
    return Message("user", (Text(text),))


def _calling(calls: list[tuple[Function, dict[str, Any]]]) -> Message:
    return Message(
        "assistant",
        tool_calls=tuple(
            ToolCall(f"call_{i}", function.name, json.dumps(arguments)) for i, (function, arguments) in enumerate(calls)
        ),
    )
