"""Answers of the Muse families as token streams, and what a parser makes of them."""

from __future__ import annotations

from musespark.conformance.spoken import TOOLS, Spoken, said
from musespark.conformance.suite import Answer, Family


def _answer(family: Family, name: str, about: str, guards: list[str], spelled: str, says: Answer) -> Spoken:
    return Spoken(f"{family}.parse.{name}", family, about, guards, spelled, dict(TOOLS), says)


def _call(name: str, body: str) -> str:
    return f'<atem:function_calls>\n<atem:invoke name="{name}">\n{body}</atem:invoke>\n</atem:function_calls>'


def _value(name: str, value: str) -> str:
    return f'<atem:parameter name="{name}">{value}</atem:parameter>\n'


def _answers(family: Family) -> list[Spoken]:
    thought, to_user = " to=self⟨message⟩Hm.⟨eom⟩⟨start⟩assistant", " to=user⟨message⟩"
    paris = ("get_weather", {"city": "Paris"})
    weather, to_tool = _call("get_weather", _value("city", "Paris")), " to=get_weather⟨message⟩"
    glimmer = family == "muse_glimmer"
    twice = thought + " to=self⟨message⟩So.⟨eom⟩⟨start⟩assistant" + to_user + "Yes.⟨eot⟩"
    return [
        _answer(
            family,
            "answer",
            "reasoning, then an answer",
            ["stops at eom"],
            thought + to_user + "Yes.⟨eot⟩",
            said("Hm.", "Yes."),
        ),
        _answer(
            family,
            "no-recipient",
            "a message to nobody, which is " + ("content" if glimmer else "reasoning"),
            ["takes Spark's rule for Glimmer or Glimmer's for Spark"],
            "⟨message⟩Hm.⟨eot⟩",
            said("", "Hm.") if glimmer else said("Hm."),
        ),
        _answer(
            family,
            "two-thoughts",
            "reasoning in two messages, joined by " + ("a line break" if glimmer else "nothing"),
            ["joins them otherwise, or loses one"],
            twice,
            said("Hm.\nSo." if glimmer else "Hm.So.", "Yes."),
        ),
        _answer(
            family,
            "call",
            "reasoning, then a call",
            ["leaves the call in the content"],
            thought + to_tool + weather + "⟨eot⟩",
            said("Hm.", "", paris),
        ),
        _answer(
            family,
            "call-first",
            "a call without reasoning",
            ["looks for calls only behind reasoning"],
            to_tool + weather + "⟨eot⟩",
            said("", "", paris),
        ),
        _answer(
            family,
            "calls",
            "two calls in messages of their own; the second has no arguments",
            ["ends the turn at the first call's eom", "loses calls without arguments"],
            f"{to_tool}{weather}⟨eom⟩⟨start⟩assistant to=clock⟨message⟩{_call('clock', '')}⟨eot⟩",
            said("", "", paris, ("clock", {})),
        ),
        _answer(
            family,
            "types",
            "values by the schema: a string of digits, a number, a list where the schema says nothing",
            ["decodes strings that look like JSON", "leaves numbers as strings"],
            to_tool
            + _call("get_weather", _value("city", "123") + _value("days", "2") + _value("extra", "[1, null]"))
            + "⟨eot⟩",
            said("", "", ("get_weather", {"city": "123", "days": 2, "extra": [1, None]})),
        ),
        _answer(
            family,
            "spaces",
            "spaces and line breaks in a string",
            ["strips values"],
            to_tool + _call("get_weather", _value("city", "  New\n York ")) + "⟨eot⟩",
            said("", "", ("get_weather", {"city": "  New\n York "})),
        ),
        _answer(
            family,
            "literal",
            "the text of a control token inside a value",
            ["ends the message at text that only looks like eot"],
            to_tool + _call("get_weather", _value("city", "<|eot|>")) + "⟨eot⟩",
            said("", "", ("get_weather", {"city": "<|eot|>"})),
        ),
        _answer(
            family,
            "quoted",
            "calls quoted in the reasoning and in the answer",
            ["executes what is only quoted"],
            f" to=self⟨message⟩{weather}⟨eom⟩⟨start⟩assistant{to_user}{weather}⟨eot⟩",
            said(weather, weather),
        ),
        _answer(
            family,
            "missing-end",
            "reasoning that runs into the header of a call without eom",
            ["takes header and call for reasoning"],
            f" to=self⟨message⟩Hm.{to_tool}{weather}⟨eot⟩",
            said("Hm.", "", paris),
        ),
        _answer(
            family,
            "doubled-name",
            "a name doubled by its namespace",
            ["knows no function of this name"],
            " to=get_weather.get_weather⟨message⟩"
            + _call("get_weather.get_weather", _value("city", "Paris"))
            + "⟨eot⟩",
            said("", "", paris),
        ),
    ]


ANSWERS = (*_answers("muse_spark"), *_answers("muse_glimmer"))
