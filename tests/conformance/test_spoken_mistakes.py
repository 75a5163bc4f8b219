"""Mistakes of whole programs in prompts, parsed answers and grids: each fails the cases made for it, and no others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from musespark.chat.tokenizer import Tokenizer
from musespark.conformance import conversations
from musespark.conformance.check import check
from musespark.conformance.engines import answer_from_chat
from musespark.conformance.spelling import read, spell
from musespark.conformance.suite import Answer, Case, Family, Suite

Program = Callable[[Suite, Case], Answer]


class Engine:
    """An engine made of one function."""

    name = "mistaken"

    def __init__(self, program: Program) -> None:
        self.answer = program


def failed(suite: Suite, program: Program, only: str) -> set[str]:
    """The last parts of the ids of the cases that the program fails."""
    results = list(check(suite, Engine(program), only))
    assert {result.status for result in results} <= {"pass", "fail"}
    return {result.case.id.rsplit(".", 1)[1] for result in results if result.status == "fail"}


def tokenizer(suite: Suite, case: Case) -> Tokenizer:
    return Tokenizer.from_file(suite.tokenizer(case.family))


def as_if(family: Family) -> Program:
    """Prompts and answers of a case in another family's format."""

    def program(suite: Suite, case: Case) -> Answer:
        given, tokens = suite.given(case), tokenizer(suite, case)
        if case.kind == "render":
            return conversations.render(family, given, tokens, suite.pictures())
        return conversations.parse(family, given, tokens)

    return program


def stopping_at(name: str) -> Program:
    """A server whose list of stop tokens has one too many."""

    def program(suite: Suite, case: Case) -> Answer:
        given, tokens = suite.given(case), tokenizer(suite, case)
        ids = given["token_ids"]
        stop = tokens.special(name)
        cut = ids[: ids.index(stop)] if stop in ids else ids
        return conversations.parse(case.family, given | {"token_ids": cut}, tokens)

    return program


def respelled(old: str, new: str) -> Program:
    """A prompt in which one piece is written in another way."""

    def program(suite: Suite, case: Case) -> Answer:
        tokens = tokenizer(suite, case)
        spelled = spell(answer_from_chat(suite, case)["token_ids"], tokens)
        return {"token_ids": read(spelled.replace(old, new), tokens)}

    return program


def strings_decoded(suite: Suite, case: Case) -> Answer:
    """A parser that reads "123" as a number whatever the schema says."""
    answer = answer_from_chat(suite, case)
    for call in answer["tool_calls"]:
        call["arguments"] = {name: decoded(value) for name, value in call["arguments"].items()}
    return answer


def decoded(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def without_tools(suite: Suite, case: Case) -> Answer:
    """A server that leaves calls in the content."""
    return conversations.parse(case.family, suite.given(case) | {"tools": []}, tokenizer(suite, case))


def larger_squares(suite: Suite, case: Case) -> Answer:
    answer = answer_from_chat(suite, case)
    for i, (width, height) in enumerate(suite.given(case)["sizes"]):
        if width == height <= 1792:
            side = math.ceil(width / 28)
            answer["grids"][i], answer["num_tokens"][i] = [side, side], side * side + 2
    return answer


def marks_forgotten(suite: Suite, case: Case) -> Answer:
    answer = answer_from_chat(suite, case)
    return answer | {"num_tokens": [count - 3 for count in answer["num_tokens"]]}


@pytest.mark.parametrize(
    ("program", "only", "expected"),
    [
        (as_if("muse_glimmer"), "muse_spark.parse", {"no-recipient", "two-thoughts"}),
        (as_if("muse_spark"), "muse_glimmer.parse", {"no-recipient", "two-thoughts"}),
        (stopping_at("<|eom|>"), "muse_spark.parse", {"answer", "two-thoughts", "call", "calls", "quoted"}),
        (stopping_at("<|eom|>"), "muse_glimmer.parse", {"answer", "two-thoughts", "call", "calls", "quoted"}),
        (strings_decoded, "muse_glimmer.parse", {"types"}),
        (strings_decoded, "llama4.parse", {"types"}),
        (without_tools, "llama4.parse", {"json", "json-marked", "json-twice", "python", "python-marked", "types"}),
        (respelled("⟨eom⟩", "⟨eot⟩"), "muse_spark.render", {"history", "calls", "comment"}),
        (respelled("<|eot|>", "⟨eot⟩"), "muse_glimmer.render", {"literal"}),
        (respelled("<|eot|>", "⟨eot⟩"), "llama4.render", {"literal"}),
        (respelled("⟨image_start⟩", "⟨image_start⟩⟨image⟩"), "muse_spark.render", {"image"}),
        (respelled("⟨tile_y_separator⟩", ""), "llama4.render", {"tiles"}),
        (respelled("ipython", "tool"), "llama4.render", {"calls"}),
        (respelled("strength", "effort"), "muse_glimmer.render.strength", {"strength"}),
        (larger_squares, "muse_spark.grids", {"sizes"}),
        (marks_forgotten, "llama4.grids", {"sizes"}),
    ],
)
def test_a_mistaken_program_fails_the_cases_made_for_it_and_no_others(
    suite: Suite, program: Program, only: str, expected: set[str]
) -> None:
    assert failed(suite, program, only) == expected
