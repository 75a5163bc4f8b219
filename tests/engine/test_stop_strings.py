"""Stop strings and UTF-8, wherever the tokens are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musespark.chat.tokenizer import Tokenizer
from musespark.engine.engine import Engine
from musespark.engine.output import StopStrings, TextDelta, TextOutput
from musespark.engine.request import SampledToken
from musespark.errors import InvalidRequest
from tests.engine.driver import Driver, request
from tests.fakes import ScriptedRunner

TOKENIZER = Tokenizer.bytes_only()


def cut_by_character(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The obvious way: add one character at a time and look at the end."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 100), max_size=10),
)
def test_every_split_gives_the_same_text_and_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    expected, stop = cut_by_character(text, stops)
    watcher = StopStrings(stops)
    sent = ""
    for piece in pieces(text, cuts):
        sent += watcher.push(piece)
        assert expected.startswith(sent)  # nothing is ever sent that must be taken back
    assert sent + watcher.flush() == expected
    assert watcher.stopped == stop


def test_only_a_possible_start_is_held_back() -> None:
    watcher = StopStrings(["END", "\n\n"])
    assert [watcher.push(text) for text in ("some E", "N", "X", "\n", "x", " EN")] == [
        "some ",
        "",
        "ENX",
        "",
        "\nx",
        " ",
    ]
    assert watcher.flush() == "EN"


def test_nothing_comes_after_a_stop() -> None:
    watcher = StopStrings(["b"])
    assert watcher.push("abc") == "a"
    assert watcher.push("def") == ""
    assert watcher.flush() == ""


@pytest.mark.parametrize("stop", [[""], ["x" * 513], ["a"] * 5])
def test_stop_strings_are_bounded(stop: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        StopStrings(stop)
    assert refusal.value.param == "stop"
    StopStrings(["x" * 512] * 4)


def written(text: bytes, **fields: object) -> tuple[str, str, list[TextDelta]]:
    """What the client of an engine sees that writes these bytes, one token each, then <|eot|>."""
    prompt = TOKENIZER.encode("hi")
    script = [32 + byte for byte in text] + [TOKENIZER.special("<|eot|>")]
    engine = Engine(ScriptedRunner(lambda position: script[position - len(prompt) + 1]))
    driver = Driver(engine)
    stop = fields.pop("stop", ())
    asked = {"max_tokens": 100, "stop_token_ids": TOKENIZER.stop_token_ids} | fields
    seen = driver.submit(request(prompt, make_output=lambda index: TextOutput(TOKENIZER, stop), **asked))
    driver.run()
    deltas: list[TextDelta] = list(seen.tokens[0])  # type: ignore[arg-type]
    return "".join(delta.text for delta in deltas), seen.reasons[0], deltas


def test_characters_of_several_tokens_come_whole() -> None:
    text, reason, deltas = written("aé😀z".encode())
    assert (text, reason) == ("aé😀z", "stop")
    assert [delta.text for delta in deltas] == ["a", "é", "😀", "z"]


def test_half_a_character_at_the_end_is_replaced() -> None:
    assert written("ab😀".encode()[:-1])[:2] == ("ab�", "stop")
    assert written("ab😀".encode(), max_tokens=4)[:2] == ("ab�", "length")


def test_stop_string_across_tokens_ends_the_choice_and_is_not_sent() -> None:
    text, reason, _ = written(b"one\n\ntwo", stop=("\n\n",))
    assert (text, reason) == ("one", "stop")


def test_stop_string_of_several_bytes_a_character() -> None:
    assert written("ja, schön! ja".encode(), stop=("ön!",))[:2] == ("ja, sch", "stop")


def test_held_back_text_is_sent_at_the_end() -> None:
    assert written(b"say EN", stop=("END",))[:2] == ("say EN", "stop")
    assert written(b"say END", stop=("END",), max_tokens=6)[:2] == ("say EN", "length")


def test_stop_string_that_ends_with_the_last_allowed_token_is_a_stop() -> None:
    assert written(b"say END", stop=("END",), max_tokens=7)[:2] == ("say ", "stop")


def test_every_token_is_reported_once_with_its_logprob() -> None:
    _, _, deltas = written("aé".encode(), logprobs=2, max_tokens=3)
    tokens = [token for delta in deltas for token in delta.tokens]
    assert [token.id for token in tokens] == [32 + byte for byte in "aé".encode()]
    assert all(token.logprob is not None and len(token.top) == 2 for token in tokens)


def test_control_tokens_have_no_text() -> None:
    output = TextOutput(TOKENIZER)
    for token in (TOKENIZER.special("<|message|>"), 32 + ord("x")):
        output.push(SampledToken(token))
    assert [delta.text for delta in output.take()] == ["x"]  # type: ignore[attr-defined]
