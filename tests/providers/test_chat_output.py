"""Tokens to events. The expected text is cut by hand or by plain string search over the whole answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from musespark.engine.request import SampledToken
from musespark.providers.base import ContentDelta, ReasoningDelta
from musespark.providers.chat_output import ChatOutput
from tests.providers.talking import EOM, MESSAGE, START, TOKENIZER


def answer(text: str, thought: str | None = None) -> list[int]:
    """A turn in the chat format, without the stop token, which the engine keeps to itself."""
    content = [*TOKENIZER.encode(" to=user"), MESSAGE, *TOKENIZER.encode(text)]
    if thought is None:
        return content
    thinking = [*TOKENIZER.encode(" to=self"), MESSAGE, *TOKENIZER.encode(thought), EOM]
    return [*thinking, START, *TOKENIZER.encode("assistant"), *content]


def events_of(
    tokens: list[int], *, stop: tuple[str, ...] = (), logprobs: bool = False
) -> tuple[list[object], ChatOutput, int]:
    """Every delta, the output, and how many tokens it took."""
    output = ChatOutput(0, TOKENIZER, stop, logprobs=logprobs)
    deltas: list[object] = []
    taken = 0
    for token in tokens:
        taken += 1
        reason = output.push(
            SampledToken(token, -0.5 if logprobs else None, ((token, -0.5), (EOM, -1.0)) if logprobs else ())
        )
        deltas += output.take()
        if reason == "stop":
            break
    output.finish()
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
