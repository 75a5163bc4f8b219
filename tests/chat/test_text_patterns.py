"""Patterns and formats of strings, as a grammar has them, against Python's `re` and an independent validator."""

from __future__ import annotations

import random
import re

import jsonschema_rs
import pytest

from musespark.chat.text_patterns import FORMATS, whole_text
from musespark.chat.tokenizer import Tokenizer
from musespark.engine.grammar import Grammar, Vocabulary

TOKENIZER = Tokenizer.bytes_only()
END = TOKENIZER.special("<|eot|>")
VOCABULARY = Vocabulary(TOKENIZER, {END})


def grammar_of(expression: str) -> Grammar:
    return Grammar(VOCABULARY, f"start: TEXT\nTEXT: /{expression}/")


def allows(grammar: Grammar, text: str) -> bool:
    matcher = grammar.matcher()
    for token in TOKENIZER.encode(text):
        if not matcher.allowed()[token]:
            return False
        matcher.consume(token)
    return bool(matcher.allowed()[END])


# In these Python's dialect, on ASCII, is ECMA's.
PATTERNS = [
    *("a", "^a", "a$", "^a$", "^(a|b)$", "a|b", "^[a-c]+$", r"^\d{2,3}$", r"\w-\w", r"^[\d.]+$", r"^[^\w]+$", r"^\D+$"),
    *(r"^\W$", r"a\.b", r"^a/b$", r"^a\/b$", r"^[/]+$", r"^\$a\^$", r"^a\$$", r"^[$^]+$", r"^[a&b]+$", r"^[a[b]+$"),
    *(r"^(?:ab)+?c?$", r"^\s*$", r"^.$", r"^\\$", r"^[\]]$", r"^[a\-z]+$", r"^(a|(b|c)d)*$", r"\(x\|y\)"),
]
TEXTS = [
    *("", "a", "b", "c", "ab", "ba", "abc", "abab", "ababc", "12", "123", "1234", "1.2", "a-b", "--", "a.b", "a/b"),
    *(
        "$a^",
        "a$",
        "$^",
        "a&b",
        "a[b",
        "[",
        "]",
        "\\",
        " ",
        "\n",
        "a-z",
        "xay",
        "x\na",
        "acd",
        "aaa",
        "(x|y)",
        "é",
        "٣",
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_it_means_in_a_schema(pattern: str) -> None:
    expression = whole_text(pattern)
    assert expression is not None
    grammar = grammar_of(expression)
    # `$` before a line break at the end is Python's own; `\Z` is what ECMA means.
    python = re.sub(r"(?<!\\)((?:\\\\)*)\$\Z", r"\1\\Z", pattern)
    for text in TEXTS:
        assert allows(grammar, text) == bool(re.search(python, text, re.ASCII)), text


def test_what_has_a_meaning_in_other_dialects_only_stands_for_itself() -> None:
    expression = whole_text("^[a&&b~~c]+$")
    assert expression is not None
    assert allows(grammar_of(expression), "a&b~c")


@pytest.mark.parametrize("pattern", ["a^b", "a$b", "^a|b$", "^a|b", r"\ba", r"(a)\1", "[]", "[^]a]", "a\\", "(^a)"])
def test_a_pattern_that_needs_anchors_or_more_is_refused(pattern: str) -> None:
    assert whole_text(pattern) is None


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_matches_a_format_is_valid(name: str) -> None:
    generator = random.Random(name)
    validator = jsonschema_rs.validator_for({"type": "string", "format": name}, validate_formats=True)
    for _ in range(40):
        matcher = grammar_of(FORMATS[name]).matcher()
        tokens: list[int] = []
        while not (allowed := matcher.allowed())[END] or generator.random() < 0.7:
            options = [int(i) for i in allowed.nonzero()[0] if i != END]
            if not options:
                break
            tokens.append(generator.choice(options))
            matcher.consume(tokens[-1])
        assert validator.is_valid(TOKENIZER.decode(tokens)), TOKENIZER.decode(tokens)


GOOD = {
    "date": "2024-02-28",
    "time": "23:59:59.5+01:00",
    "date-time": "2026-11-25T10:00:00Z",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "email": "first.last+tag@mail.example.com",
    "ipv4": "192.168.0.1",
    "ipv6": "2001:db8::1",
    "hostname": "www.example.com",
    "uri": "https://example.com:8080/a/b.html?q=1&r=x#top",
    "duration": "PT1H30M",
}


@pytest.mark.parametrize("name", FORMATS)
def test_ordinary_values_match_their_formats(name: str) -> None:
    assert allows(grammar_of(FORMATS[name]), GOOD[name])
    assert not allows(grammar_of(FORMATS[name]), GOOD[name] + " ")
    assert not allows(grammar_of(FORMATS[name]), "." + GOOD[name])
