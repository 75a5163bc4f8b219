"""Tokens to events. The expected text is cut by hand or by plain string search over the whole answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musespark.chat.messages import Tool
from musespark.chat.parser import ChatParser
from musespark.engine.request import SampledToken
from musespark.providers.base import ContentDelta, ReasoningDelta, ToolCallDelta
from musespark.providers.chat_output import Called, ChatOutput
from tests.providers.talking import EOM, EOT, MESSAGE, START, TOKENIZER


def answer(text: str, thought: str | None = None) -> list[int]:
    """A turn in the chat format, without the stop token, which the engine keeps to itself."""
    content = [*TOKENIZER.encode(" to=user"), MESSAGE, *TOKENIZER.encode(text)]
    if thought is None:
        return content
    thinking = [*TOKENIZER.encode(" to=self"), MESSAGE, *TOKENIZER.encode(thought), EOM]
    return [*thinking, START, *TOKENIZER.encode("assistant"), *content]


def events_of(
    tokens: list[int],
    *,
    stop: tuple[str, ...] = (),
    logprobs: bool = False,
    tools: tuple[Tool, ...] = (),
    stop_token: int | None = EOT,
) -> tuple[list[object], ChatOutput, int]:
    """Every delta, the output, and how many tokens it took; `stop_token` ends it, unless a stop string did."""
    output = ChatOutput(
        0,
        parser=ChatParser(TOKENIZER, tools=tools, make_id=lambda: "call_x"),
        tokenizer=TOKENIZER,
        end_ids=frozenset({EOT}),
        stop=stop,
        logprobs=logprobs,
    )
    deltas: list[object] = []
    taken = 0
    for token in tokens:
        taken += 1
        reason = output.push(
            SampledToken(token, -0.5 if logprobs else None, ((token, -0.5), (EOM, -1.0)) if logprobs else ())
        )
        deltas += output.take()
        if reason == "stop":
            stop_token = None
            break
    output.finish(stop_token)
    return deltas + output.take(), output, taken


def content_of(deltas: list[object]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))


def reasoning_of(deltas: list[object]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))


def test_reasoning_and_content_are_told_apart_and_counted() -> None:
    deltas, output, _ = events_of(answer("Hello", "hm"))
    assert (reasoning_of(deltas), content_of(deltas)) == ("hm", "Hello")
    assert output.reasoning_tokens == len(" to=self") + 1 + len("hm") + 1  # header, <|message|>, text, <|eom|>


def test_stop_strings_act_on_content_only() -> None:
    deltas, _, _ = events_of(answer("one STOP two", "I must not STOP here"), stop=("STOP",))
    assert reasoning_of(deltas) == "I must not STOP here"
    assert content_of(deltas) == "one "


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4))
def test_content_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    ends = [text.find(s) + len(s) for s in stop if s in text]
    expected = text
    if ends:
        first = min(ends)
        expected = text[: min(first - len(s) for s in stop if text[:first].endswith(s))]
    deltas, _, taken = events_of(answer(text), stop=tuple(stop))
    assert content_of(deltas) == expected
    if ends:
        assert taken == len(" to=user") + 1 + min(ends)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_comes_back_whole(thought: str, text: str) -> None:
    deltas, _, _ = events_of(answer(text, thought or None), logprobs=True)
    assert (reasoning_of(deltas), content_of(deltas)) == (thought, text)


@given(st.text(max_size=20))
def test_the_bytes_of_the_logprobs_are_the_content(text: str) -> None:
    deltas, _, _ = events_of(answer(text, "thinking"), logprobs=True)
    tokens = [token for delta in deltas if isinstance(delta, ContentDelta) for token in delta.logprobs]
    assert b"".join(token.data for token in tokens) == text.encode()


def test_a_logprob_comes_with_the_text_that_it_begins() -> None:
    deltas, _, _ = events_of(answer("a😀b"), logprobs=True)
    assert [(delta.text, len(delta.logprobs)) for delta in deltas if isinstance(delta, ContentDelta)] == [
        ("a", 1),
        ("😀", 4),
        ("b", 1),
    ]


def test_logprobs_of_a_held_back_text_wait_and_those_of_a_stop_string_are_dropped() -> None:
    deltas, _, _ = events_of(answer("a STOP"), stop=("STOP",), logprobs=True)
    assert [(delta.text, len(delta.logprobs)) for delta in deltas if isinstance(delta, ContentDelta)] == [
        ("a", 1),
        (" ", 1),
    ]


def test_alternatives_are_named_special_tokens_too() -> None:
    deltas, _, _ = events_of(answer("a"), logprobs=True)
    [delta] = deltas
    assert isinstance(delta, ContentDelta)
    assert [(other.text, other.logprob) for other in delta.logprobs[0].top] == [("a", -0.5), ("<|eom|>", -1.0)]


def test_without_a_header_the_model_speaks_to_the_user() -> None:
    deltas, output, _ = events_of(TOKENIZER.encode("Hello there"), logprobs=True)
    assert content_of(deltas) == "Hello there"
    assert sum(len(delta.logprobs) for delta in deltas if isinstance(delta, ContentDelta)) == len("Hello there")
    assert output.reasoning_tokens == 0


def test_an_answer_cut_off_in_its_reasoning_has_no_content() -> None:
    deltas, output, _ = events_of(answer("Hello", "a long thought")[:15])
    assert (reasoning_of(deltas), content_of(deltas)) == ("a long", "")
    assert output.reasoning_tokens == 15


def test_a_character_cut_off_becomes_a_replacement_character() -> None:
    deltas, _, _ = events_of(answer("ok 😀")[:-1], logprobs=True)
    assert content_of(deltas) == "ok \ufffd"


WEATHER = Tool("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
OPENED, CLOSED = "<atem:function_calls>\n", "\n</atem:function_calls>"
CALL = (
    f'{OPENED}<atem:invoke name="weather">\n<atem:parameter name="city">Rome</atem:parameter>\n</atem:invoke>{CLOSED}'
)


def call_of(name: str, text: str = CALL) -> list[int]:
    return [*TOKENIZER.encode(f" to={name}"), MESSAGE, *TOKENIZER.encode(text)]


def test_a_call_is_its_name_then_its_arguments_then_a_mark_that_it_is_whole() -> None:
    deltas, _, _ = events_of(call_of("weather"), tools=(WEATHER,))
    start, *arguments, called = deltas
    assert start == ToolCallDelta(0, 0, "call_x", "weather")
    assert all(isinstance(delta, ToolCallDelta) and delta.id is delta.name is None for delta in arguments)
    assert "".join(delta.arguments for delta in arguments if isinstance(delta, ToolCallDelta)) == '{"city": "Rome"}'
    assert called == Called(0)


@pytest.mark.parametrize("stop_token", [None, ord("x") + 32], ids=["at a limit", "at the client's own token"])
def test_a_call_that_was_cut_off_is_left_open_and_not_marked(stop_token: int | None) -> None:
    tokens = call_of("weather", CALL[: CALL.index("me</atem")])
    deltas, _, _ = events_of(tokens, tools=(WEATHER,), stop_token=stop_token)
    assert "".join(delta.arguments for delta in deltas if isinstance(delta, ToolCallDelta)) == '{"city": "Ro'
    assert Called(0) not in deltas


def test_a_call_to_no_tool_of_ours_is_shown_as_it_was_written() -> None:
    written = CALL.replace("weather", "rm")
    deltas, _, _ = events_of(call_of("rm", written), tools=(WEATHER,))
    assert content_of(deltas) == written.removeprefix("<atem:function_calls>\n").removesuffix(
        "\n</atem:function_calls>"
    )
    assert not any(isinstance(delta, ToolCallDelta | Called) for delta in deltas)


def test_tokens_of_calls_have_no_logprobs_and_stop_strings_do_not_touch_them() -> None:
    remark = [*TOKENIZER.encode(" to=commentary"), MESSAGE, *TOKENIZER.encode("hm"), EOM, START]
    tokens = [*remark, *TOKENIZER.encode("assistant"), *call_of("weather")]
    deltas, _, _ = events_of(tokens, tools=(WEATHER,), logprobs=True, stop=("Rome",))
    assert content_of(deltas) == "hm"
    assert b"".join(t.data for d in deltas if isinstance(d, ContentDelta) for t in d.logprobs) == b"hm"
    assert Called(0) in deltas
