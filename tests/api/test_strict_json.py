"""Strict JSON against the standard library's parser and hand-written attacks."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musespark.api import strict_json
from musespark.errors import InvalidRequest

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_what_is_valid_is_read_as_the_standard_library_reads_it(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert strict_json.parse(text.encode()) == json.loads(text)


@given(st.binary(max_size=60))
def test_no_bytes_whatever_give_anything_but_a_value_or_an_invalid_request(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        strict_json.parse(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "not valid JSON: Extra data"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a": "\n"}', "not valid JSON: Invalid control character"),
        (b'{"a": "open', "the string at byte 6 has no end"),
        (b'{"a": "\xff"}', "not valid UTF-8: byte 7 is wrong"),
        (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8"),  # a surrogate, encoded
        (b'{"a": "\\ud800"}', r"holds \\ud800, half of a surrogate pair"),
        (b'{"\\udfff": 1}', r"holds \\udfff, half of a surrogate pair"),
        (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
        (b'{"x": {"\\u0061": 1, "a": 2}}', "the key 'a' appears twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e400}', "the number 1e400 is too large"),
        (b'{"a": -1e400}', "the number -1e400 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "has more than 40 digits"),
        (b'{"a": 1' + b"0" * 400 + b".5}", "is too large"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_the_reason(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        strict_json.parse(body)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e400", "9" * 41, '"\\ud800"', '{"\\ud800": 1}'])
def test_a_value_that_cannot_be_read_is_named_by_its_path(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^`a\.1\.b`: ") as caught:
        strict_json.parse(f'{{"x": 1, "a": [0, {{"b": {value}}}]}}'.encode())
    assert caught.value.param == "a.1.b"


def test_nesting_is_bounded_on_both_sides() -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        deepest = opening * 32 + b"1" + closing * 32
        assert strict_json.parse(deepest) == json.loads(deepest)
        with pytest.raises(InvalidRequest, match="nested deeper than 32 levels"):
            strict_json.parse(opening * 33 + b"1" + closing * 33)


def test_the_number_of_values_is_bounded_on_both_sides() -> None:
    most = json.dumps([0] * (strict_json.MAX_VALUES - 1)).encode()
    assert len(strict_json.parse(most)) == strict_json.MAX_VALUES - 1
    with pytest.raises(InvalidRequest, match="more than 200,000 values"):
        strict_json.parse(json.dumps([0] * strict_json.MAX_VALUES).encode())


def test_structure_inside_strings_does_not_count() -> None:
    text = '[{"\\' * 50_000
    assert strict_json.parse(json.dumps({"a": text}).encode()) == {"a": text}


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 8_000_000,
        b'{"a":' * 2_000_000,
        b"[{}," * 4_000_000,
        b'"' + b'\\"' * 8_000_000,  # one string that never ends, full of what looks like the start of one
        b'["' + b"a" * 16_000_000 + b'"]',
        b'["' + b"\\u0041" * 3_000_000 + b'"]',
        b"]" * 16_000_000,
        b'""' * 8_000_000,
    ],
    ids=["arrays", "objects", "empty objects", "open string", "long string", "escapes", "closings", "empty strings"],
)
def test_sixteen_megabytes_of_anything_are_judged_in_about_linear_time(body: bytes) -> None:
    began_s = time.process_time()
    with contextlib.suppress(InvalidRequest):
        strict_json.parse(body)
    assert time.process_time() - began_s < 4  # the slowest takes about 0.5 s here; quadratic work would take hours
