"""Every field of a chat request on both sides of its limits, which are those of OpenAI's documentation or vLLM's."""

from __future__ import annotations

import base64
import math
from typing import Any

import pytest

from musespark.api.chat_request import ChatCompletionRequest, parse_request
from musespark.chat.messages import Image, Message, Text, ToolCall
from musespark.errors import InvalidImage, InvalidRequest, UnsupportedField
from musespark.providers.base import ChatRequest

USER = {"role": "user", "content": "hi"}
IMAGE_URL = "data:image/png;base64," + base64.b64encode(b"bytes").decode()


def understood(**fields: Any) -> ChatRequest:
    return parse_request({"model": "m", "messages": [USER]} | fields).to_request("r1", b"salt")


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        understood(**fields)
    return caught.value


def messages(*given: dict[str, Any]) -> tuple[Message, ...]:
    return understood(messages=list(given)).messages


RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
INTEGER_RANGES = {
    "n": (1, 16),
    "max_tokens": (1, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
    "top_k": (0, 2**31 - 1),
    "seed": (-(2**63), 2**64 - 1),
}


@pytest.mark.parametrize(("field", "low", "high"), [(name, *limits) for name, limits in RANGES.items()])
def test_number_fields_have_limits(field: str, low: float, high: float) -> None:
    for value in (low, high, float(low), (low + high) / 2):
        assert getattr(understood(**{field: value}), field) == value
    for value in (
        math.nextafter(low, -math.inf),
        math.nextafter(high, math.inf),
        1e300,
        -1e300,
        10**30,
        math.nan,
        math.inf,
    ):
        error = refusal(**{field: value})
        assert (error.code, error.param) == ("invalid_request", field)
        assert field in error.message


def test_the_repetition_penalty_is_above_zero_and_at_most_ten() -> None:
    assert understood(repetition_penalty=10).repetition_penalty == 10
    assert understood(repetition_penalty=1e-9).repetition_penalty == 1e-9
    for value in (0, -1, 10.1, math.nan, math.inf):
        assert refusal(repetition_penalty=value).param == "repetition_penalty"


@pytest.mark.parametrize(("field", "low", "high"), [(name, *limits) for name, limits in INTEGER_RANGES.items()])
def test_integer_fields_have_limits(field: str, low: int, high: int) -> None:
    ours = "max_tokens" if field == "max_completion_tokens" else field
    for value in (low, high):
        assert getattr(understood(**{field: value}), ours) == value
    for value in (low - 1, high + 1, 10**30, -(10**30)):
        error = refusal(**{field: value})
        assert (error.code, error.param) == ("invalid_request", field)


def test_top_logprobs_has_limits_and_needs_logprobs() -> None:
    assert understood(logprobs=True).logprobs == 0
    assert understood(logprobs=False).logprobs is None
    for value in (0, 20):
        assert understood(logprobs=True, top_logprobs=value).logprobs == value
    for value in (-1, 21, 10**9):
        assert refusal(logprobs=True, top_logprobs=value).param == "top_logprobs"
    assert refusal(top_logprobs=2).param == "top_logprobs"


WRONG_TYPES: dict[str, list[Any]] = {
    **{name: ["1", True, [], {}, [0.5]] for name in [*RANGES, "repetition_penalty"]},
    **{name: ["1", True, 1.0, 1.5, [], {}] for name in [*INTEGER_RANGES, "top_logprobs"]},
    **{name: [0, 1, "true", [], {}] for name in ["logprobs", "stream", "ignore_eos"]},
    **{name: [0, True, [], {}, ["a"]] for name in ["model", "reasoning_effort", "user", "safety_identifier"]},
    "stop": [0, True, {}, [0], [None], [["a"]]],
    "stop_token_ids": [0, "1", {}, ["1"], [True], [1.0], [-1], [2**31]],
    "logit_bias": [0, "a", [], [1], {"1": "1"}, {"1": True}, {"1": None}, {"one": 1}, {"-1": 1}, {"1.0": 1}, {"": 1}],
    "metadata": [0, "a", [], {"a": 1}, {"a": None}, {"a": {}}],
    "messages": [0, "a", True, {}, [0], ["a"], [None], [[]]],
    "stream_options": [0, "a", [], {"include_usage": 1}],
    "response_format": [0, "text", [], {}, {"type": 0}, {"type": "xml"}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(name, value) for name, values in WRONG_TYPES.items() for value in values]
)
def test_wrong_types_are_refused_by_name(field: str, value: Any) -> None:
    error = refusal(**{"stream": True, field: value} if field == "stream_options" else {field: value})
    assert error.status == 400
    assert error.param is not None
    assert error.param.split(".")[0] == field


def test_null_means_the_default_everywhere_but_where_a_value_is_needed() -> None:
    optional = [name for name in ChatCompletionRequest.model_fields if name not in ("model", "messages")]
    assert understood(**dict.fromkeys(optional)) == understood()
    for field in ("model", "messages"):
        assert refusal(**{field: None}).param == field


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(field: str) -> None:
    body = {"model": "m", "messages": [USER]}
    del body[field]
    with pytest.raises(InvalidRequest, match=f"the field `{field}` is missing"):
        parse_request(body)


@pytest.mark.parametrize("body", [None, True, 1, 1.5, "text", []])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequest, match="the body must be a JSON object, not "):
        parse_request(body)


UNSUPPORTED = {
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "audio": {"voice": "x"},
    "modalities": ["audio"],
    "prediction": {"type": "content", "content": "x"},
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "web_search_options": {"a": 1},
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"tokenize": True},
    "prompt_embeds": "AAAA",
    "guided_json": {},
    "echo": True,
    "best_of": 2,
    "": 1,
    "=x": 1,
    "Temperature": 1,
}


@pytest.mark.parametrize(("field", "value"), UNSUPPORTED.items())
def test_a_field_without_effect_is_refused_by_name(field: str, value: Any) -> None:
    error = refusal(**{field: value})
    assert (error.code, error.status) == ("unsupported_field", 400)
    assert error.param == (field or None)
    assert f"`{field}`" in error.message


def test_asking_for_text_by_name_is_asking_for_text() -> None:
    assert understood(modalities=["text"]) == understood()
    assert refusal(modalities=["smell"]).param == "modalities.0"


@pytest.mark.parametrize("value", [0, 0.0, ""])
def test_a_zero_does_not_say_nothing(value: Any) -> None:
    """In Python 0 equals False; in JSON it is another type."""
    assert refusal(store=value).param == "store"


def test_known_fields_that_say_nothing_are_accepted() -> None:
    assert understood(tools=[], functions=None, store=False, audio=None, prediction=None) == understood()
    for field, values in {
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
    }.items():
        for value in values:
            assert understood(**{field: value}) == understood()
    for value in ("none", "auto"):
        assert understood(tool_choice=value) == understood()
    assert understood(parallel_tool_calls=True) == understood()


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": True}, "temperature", "must be a number; it is true"),
        ({"stop": None, "model": None}, "model", "must be a string; it is null"),
        ({"n": {}}, "n", "must be a whole number; it is an object"),
        ({"messages": ["x"]}, "messages.0", "must be an object; it is a string"),
        ({"messages": [{"role": None}]}, "messages.0.role", "is null; it must be 'developer'"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "the field `messages.0.role` is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "must be a string or a list; it is 5"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0", "must be an object; it is a str"),
        ({"stop": True}, "stop", "must be a string or a list; it is true"),
        ({"logit_bias": {"one": 1}}, "logit_bias", "has the key 'one'; a key must be a token id"),
        ({"metadata": {"a" * 65: ""}}, "metadata", "a key must have at most 64 characters"),
        ({"metadata": {"[key]": 1}}, "metadata.[key]", "must be a string; it is 1"),
    ],
)
def test_errors_speak_of_json(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert message in error.message


def test_stop_is_one_string_or_up_to_four() -> None:
    assert understood(stop="a").stop == ("a",)
    assert understood(stop=["a", "b", "c", "d"]).stop == ("a", "b", "c", "d")
    assert understood(stop=["a" * 512]).stop == ("a" * 512,)
    assert understood(stop=[]).stop == ()
    for value in ("", [""], ["a"] * 5, ["a"] * 100_000, "a" * 513, ["a" * 513]):
        error = refusal(stop=value)
        assert error.param is not None
        assert error.param.startswith("stop")
        assert len(error.message) < 300


def test_logit_bias_has_limits() -> None:
    assert understood(logit_bias={"5": -100, "7": 100}).logit_bias == {5: -100.0, 7: 100.0}
    assert len(understood(logit_bias={str(i): 1 for i in range(1024)}).logit_bias) == 1024
    for value in ({"5": 100.5}, {"5": -101}, {"5": math.nan}, {str(i): 1 for i in range(1025)}, {"9" * 11: 1}):
        error = refusal(logit_bias=value)
        assert error.param is not None
        assert error.param.startswith("logit_bias")


def test_a_token_is_biased_once() -> None:
    """Two spellings of one id would leave one bias without effect."""
    assert understood(logit_bias={"0": 1, "10": 2}).logit_bias == {0: 1.0, 10: 2.0}
    for value in ({"5": 1, "05": -1}, {"00": 1}):
        assert (refusal(logit_bias=value).param or "").startswith("logit_bias")


def test_both_names_of_reasoning_must_agree() -> None:
    def said(**reasoning: str | None) -> str | None:
        (message,) = messages({"role": "assistant", "content": "c", **reasoning})
        return message.reasoning

    assert said(reasoning="a", reasoning_content="a") == said(reasoning=None, reasoning_content="a") == "a"
    error = refusal(messages=[{"role": "assistant", "content": "c", "reasoning": "a", "reasoning_content": "b"}])
    assert error.param == "messages.0"


def test_labels_have_limits() -> None:
    assert understood(metadata={"a" * 64: "b" * 512}, user="u" * 512) == understood()
    for fields in ({"metadata": {"a" * 65: ""}}, {"metadata": {"a": "b" * 513}}, {"user": "u" * 513}):
        refusal(**fields)
    refusal(metadata={str(i): "" for i in range(17)})


def test_max_tokens_and_its_newer_name_must_agree() -> None:
    assert understood(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert refusal(max_tokens=5, max_completion_tokens=6).param == "max_completion_tokens"


def test_stream_options_need_a_stream() -> None:
    assert refusal(stream_options={"include_usage": True}).param == "stream_options"
    understood(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    error = refusal(stream=True, stream_options={"include_obfuscation": True})
    assert (error.code, error.param) == ("unsupported_field", "stream_options.include_obfuscation")


def test_a_cache_key_separates_prefixes_within_the_organisation() -> None:
    salts = {understood(prompt_cache_key=key).cache_salt for key in (None, "a", "b")}
    assert len(salts) == 3
    assert understood(prompt_cache_key="a").cache_salt == understood(prompt_cache_key="a").cache_salt


def test_roles_become_the_models_own() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert messages(
        {"role": "developer", "content": "a"},
        {"role": "system", "content": [{"type": "text", "text": "b"}]},
        USER,
        {"role": "assistant", "content": "c", "reasoning_content": "hm", "refusal": None, "annotations": []},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "d"},
    ) == (
        Message("system", (Text("a"),)),
        Message("system", (Text("b"),)),
        Message("user", (Text("hi"),)),
        Message("assistant", (Text("c"),), reasoning="hm"),
        Message("assistant", (), tool_calls=(ToolCall("c1", "f", '{"a": 1}'),)),
        Message("tool", (Text("d"),), tool_call_id="c1"),
    )


def test_an_image_is_decoded_from_its_data_url() -> None:
    for url in (IMAGE_URL, IMAGE_URL.replace("png", "JPEG"), IMAGE_URL.replace("data", "DATA")):
        part = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
        assert messages({"role": "user", "content": [part]}) == (Message("user", (Image(b"bytes"),)),)


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
def test_remote_images_are_refused_with_the_reason(scheme: str) -> None:
    for host in ("169.254.169.254/latest", "0/", "[::ffff:127.0.0.1]", "evil\\@127.0.0.1", "example.com/cat.png"):
        error = refusal(messages=[{"role": "user", "content": [image(f"{scheme}://{host}")]}])
        assert (type(error), error.param) == (InvalidImage, "messages.0.content.0.image_url.url")
        assert "remote images are not fetched" in error.message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1",
        "//example.com/cat.png",
        "data:",
        "data:image/png,abc",
        "data:text/plain;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;charset=utf-8;base64,AAAA",
        "data:image/png;base64,A",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA\nAA",
        "data:image/png;base64,!!!!",
        "data:image/png;base64,ÄÄÄÄ",
        " data:image/png;base64,AAAA",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    error = refusal(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, image(url)]}])
    assert (type(error), error.param) == (InvalidImage, "messages.0.content.1.image_url.url")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/bmp;base64,Qk0=", "image/bmp is not supported; send PNG, JPEG, WebP or GIF"),
        ("data:image/AVIF;base64,AAAA", "image/avif is not supported; send PNG, JPEG, WebP or GIF"),
        ("data:image/png;base64,AA\nAA", "line breaks"),
        ("data:image/png;base64,!!!!", "not base64"),
    ],
)
def test_what_is_wrong_with_a_data_url_is_said(url: str, message: str) -> None:
    assert message in refusal(messages=[{"role": "user", "content": [image(url)]}]).message


BAD_MESSAGES: list[tuple[dict[str, Any], str, str]] = [
    ({"role": "alien", "content": "x"}, "invalid_request", "messages.0.role"),
    ({"role": "function", "content": "x"}, "invalid_request", "messages.0.role"),
    ({"role": "User", "content": "x"}, "invalid_request", "messages.0.role"),
    ({"role": None, "content": "x"}, "invalid_request", "messages.0.role"),
    ({"role": ["user"], "content": "x"}, "invalid_request", "messages.0.role"),
    ({"content": "x"}, "invalid_request", "messages.0.role"),
    ({"role": "user"}, "invalid_request", "messages.0.content"),
    ({"role": "user", "content": None}, "invalid_request", "messages.0.content"),
    ({"role": "user", "content": 5}, "invalid_request", "messages.0.content"),
    ({"role": "user", "content": {}}, "invalid_request", "messages.0.content"),
    ({"role": "user", "content": []}, "invalid_request", "messages.0.content"),
    ({"role": "user", "content": [[]]}, "invalid_request", "messages.0.content.0"),
    ({"role": "user", "content": ["x"]}, "invalid_request", "messages.0.content.0"),
    ({"role": "user", "content": [{}]}, "invalid_request", "messages.0.content.0.type"),
    ({"role": "user", "content": [{"type": "text"}]}, "invalid_request", "messages.0.content.0.text"),
    ({"role": "user", "content": [{"type": "text", "text": 5}]}, "invalid_request", "messages.0.content.0.text"),
    ({"role": "user", "content": [{"type": "input_audio"}]}, "unsupported_field", "messages.0.content.0.type"),
    ({"role": "user", "content": [{"type": "file"}]}, "unsupported_field", "messages.0.content.0.type"),
    ({"role": "user", "content": [{"type": "image_url"}]}, "invalid_request", "messages.0.content.0.image_url"),
    ({"role": "user", "content": "x", "name": "bob"}, "unsupported_field", "messages.0.name"),
    ({"role": "user", "content": "x", "prefix": True}, "unsupported_field", "messages.0.prefix"),
    (
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": IMAGE_URL}}]},
        "",
        "messages.0.content.0",
    ),
    ({"role": "assistant"}, "invalid_request", "messages.0"),
    ({"role": "assistant", "content": None, "tool_calls": []}, "invalid_request", "messages.0"),
    ({"role": "assistant", "content": "x", "refusal": "no"}, "unsupported_field", "messages.0.refusal"),
    ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "unsupported_field", "messages.0.audio"),
    ({"role": "tool", "content": "x"}, "invalid_request", "messages.0.tool_call_id"),
    ({"role": "tool", "content": "x", "tool_call_id": ""}, "invalid_request", "messages.0.tool_call_id"),
]


@pytest.mark.parametrize(("message", "code", "param"), BAD_MESSAGES)
def test_a_bad_message_is_refused_by_its_place(message: dict[str, Any], code: str, param: str) -> None:
    error = refusal(messages=[message])
    assert error.param is not None
    assert error.param.startswith(param)
    assert not code or (error.code, error.param) == (code, param)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "<|start|>", "x" * 129, 'a" onload="'])
def test_a_tool_name_that_could_break_out_of_its_header_is_refused(name: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    error = refusal(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert error.param == "messages.0.tool_calls.0.function.name"


def test_messages_are_counted() -> None:
    assert len(understood(messages=[USER] * 2048).messages) == 2048
    assert refusal(messages=[USER] * 2049).param == "messages"
    assert refusal(messages=[]).param == "messages"


def test_detail_is_accepted_where_it_says_what_happens_anyway() -> None:
    for detail in ("auto", "high", None):
        messages({"role": "user", "content": [image(IMAGE_URL, detail)]})
    error = refusal(messages=[{"role": "user", "content": [image(IMAGE_URL, "low")]}])
    assert error.param == "messages.0.content.0.image_url.detail"


def test_an_error_never_repeats_a_long_value_or_name() -> None:
    for fields in (
        {"messages": [{"role": "x" * 10_000, "content": "y"}]},
        {"n": 10**39},
        {"response_format": {"type": "z" * 9999}},
        {"x" * 10_000: 1},
        {"metadata": {"x" * 10_000: "y"}},
        {"logit_bias": {"x" * 10_000: 1}},
    ):
        error = refusal(**fields)
        assert len(error.message) < 300
        assert len(error.param or "") < 150


def test_an_unsupported_field_beside_a_wrong_one_does_not_hide_it() -> None:
    assert type(refusal(functions=[{}], n=0)) is InvalidRequest
    assert type(refusal(functions=[{}])) is UnsupportedField


def image(url: str, detail: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


def test_what_sdks_keep_beside_an_answer_is_not_read() -> None:
    said = {"role": "assistant", "content": "Hi"}
    kept = {"parsed": {"a": 1}, "provider_specific_fields": {"refusal": None}, "annotations": [], "function_call": None}
    assert messages(USER, said | kept) == messages(USER, said)
