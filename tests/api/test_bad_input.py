"""Bad input over HTTP: a clear error, never a 5xx, and the server goes on. One test per row of the list, at least.

Limits of single fields are in test_chat_request.py, of JSON itself in test_strict_json.py; here is what only shows on a
real connection, or deeper in.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from musespark.api import protocol
from tests.api.world import MODEL, World, asking, exchange, receive, running_world
from tests.chat.image_samples import encoded, picture, png_header

SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|start|>",
    "<|message|>",
    "<|eom|>",
    "<|eot|>",
    "<|image_start|>",
    "<|image|>",
    "<|patch|>",
    "<|reserved_31|>",
]


@pytest.fixture(autouse=True)
def _goes_on(world: World) -> Iterator[None]:
    """Whatever a test sent, the next request is answered."""
    yield
    assert world.ask("say: fine").json()["choices"][0]["message"]["content"] == "fine"


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "0x" not in error["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    return error


def image_part(data: bytes, kind: str = "png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def see(world: World, *files: bytes, text: str | None = "look") -> httpx.Response:
    parts = [image_part(data) for data in files] + ([{"type": "text", "text": text}] if text is not None else [])
    return world.post({"model": MODEL, "messages": [{"role": "user", "content": parts}]})


# Messages


@pytest.mark.parametrize("messages", [[], None, "", "hi", {}, [[]], [None], [{}], [[{"role": "user", "content": "x"}]]])
def test_messages_that_are_none(world: World, messages: Any) -> None:
    error = refused(world.post({"model": MODEL, "messages": messages}))
    assert error["param"].startswith("messages")


@pytest.mark.parametrize("text", ["", " ", "\n", "\u0000", "\u202e", "\ufeff", "a\u0301" * 1000, "😀" * 500])
def test_odd_but_valid_texts_are_answered(world: World, text: str) -> None:
    answer = world.ask(text).json()["choices"][0]["message"]["content"]
    assert answer == f"I read {len(text.encode())} bytes and 0 image tokens."


def test_only_images_are_answered(world: World) -> None:
    response = see(world, encoded(picture(28, 28), "PNG"), text=None)
    assert response.json()["choices"][0]["message"]["content"] == "I read 0 bytes and 1 image tokens."


def test_only_a_system_message_is_answered(world: World) -> None:
    response = world.post({"model": MODEL, "messages": [{"role": "system", "content": "Be brief."}]})
    assert response.json()["choices"][0]["message"]["content"].startswith("I read ")


def test_an_unknown_role(world: World) -> None:
    error = refused(world.post({"model": MODEL, "messages": [{"role": "wizard", "content": "x"}]}))
    assert "'wizard'" in error["message"]


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_in_text_stay_text_wherever_they_stand(world: World, token: str) -> None:
    answer = world.ask(token).json()["choices"][0]["message"]["content"]
    assert answer == f"I read {len(token)} bytes and 0 image tokens."
    call = {"id": token, "type": "function", "function": {"name": "f", "arguments": json.dumps({token: token})}}
    messages = [
        {"role": "system", "content": token},
        {"role": "user", "content": [{"type": "text", "text": token}]},
        {"role": "assistant", "content": token, "reasoning": token, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": token, "content": token},
        {"role": "user", "content": "say: fine"},
    ]
    response = world.post({"model": MODEL, "messages": messages, "stop": [token]})
    assert response.json()["choices"][0]["message"]["content"] == "fine"


def test_a_million_placeholders_take_linear_time(world: World) -> None:
    began_s = time.monotonic()
    error = refused(world.ask("<|image|>" * 110_000))
    assert error["code"] == "context_length_exceeded"
    assert time.monotonic() - began_s < 20


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(world: World) -> None:
    error = refused(world.ask("x" * 5000))
    assert error["code"] == "context_length_exceeded"
    assert "this model takes 4,096" in error["message"]
    assert "max_tokens" not in error["message"]


def test_max_tokens_beyond_the_context_is_refused_and_not_cut(world: World) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        error = refused(world.ask("say: a", **{field: 4096}))
        assert (error["code"], error["param"]) == ("context_length_exceeded", field)
        assert "up to 4,096 are asked for" in error["message"]


# Images


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 700), (700, 1), (2, 3)])
def test_tiny_and_thin_images_are_read(world: World, width: int, height: int) -> None:
    assert see(world, encoded(picture(width, height), "PNG")).status_code == 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_all_four_formats_are_read(world: World, kind: str) -> None:
    response = see(world, encoded(picture(56, 28), kind))
    assert response.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 2


def test_a_cmyk_and_an_animated_image_are_read(world: World) -> None:
    frames = [picture(28, 28, seed) for seed in range(3)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert see(world, encoded(picture(28, 28).convert("CMYK"), "JPEG"), animated).status_code == 200


BAD_IMAGES = {
    "nothing": b"",
    "text": b"this is not an image",
    "html": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "bmp": b"BM" + bytes(100),
    "truncated png": encoded(picture(200, 200), "PNG")[:-3000],
    "truncated jpeg": encoded(picture(200, 200), "JPEG")[:200],
    "truncated webp": encoded(picture(200, 200), "WEBP")[:60],
    "truncated gif": encoded(picture(200, 200), "GIF")[:60],
    "sides of 65,535": png_header(65_535, 65_535),
    "sides of 2 billion": png_header(2**31 - 1, 2**31 - 1),
    "sides of 0": png_header(0, 0),
    "a side of 65,536": png_header(65_536, 1),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_refused(world: World, name: str) -> None:
    error = refused(see(world, BAD_IMAGES[name]))
    assert (error["code"], error["param"].split(".")[0]) == ("invalid_image", "messages")


def test_a_decompression_bomb_is_refused_by_its_size(world: World) -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")  # a hundred million pixels
    assert len(file.getvalue()) < 20_000
    assert "pixels" in refused(see(world, file.getvalue()))["message"]


def test_too_many_images_are_refused(world: World) -> None:
    file = encoded(picture(28, 28), "PNG")
    assert see(world, *[file] * 16).status_code == 200
    assert refused(see(world, *[file] * 17))["code"] == "invalid_image"


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest/meta-data", "https://example.com/cat.png"])
def test_remote_images_are_refused_and_never_fetched(world: World, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    error = refused(world.post({"model": MODEL, "messages": [{"role": "user", "content": [part]}]}))
    assert error["code"] == "invalid_image"
    assert "not fetched" in error["message"]


# Numbers, as they are written on the wire

NUMBER_FIELDS = [
    *("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("n", "max_tokens", "max_completion_tokens", "top_k", "seed", "top_logprobs"),
]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" + "0" * 60, "-1e30", "1e30"])
@pytest.mark.parametrize("field", NUMBER_FIELDS)
def test_numbers_that_are_none_or_far_too_large(world: World, field: str, number: str) -> None:
    body = json.dumps(asking("hi", logprobs=True))[:-1] + f', "{field}": {number}}}'
    refused(world.post(content=body.encode()))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "1e30", "-1e30"])
def test_numbers_inside_logit_bias(world: World, number: str) -> None:
    body = json.dumps(asking("hi"))[:-1] + f', "logit_bias": {{"5": {number}}}}}'
    refused(world.post(content=body.encode()))


def test_a_billion_choices_and_a_hundred_thousand_stops(world: World) -> None:
    assert refused(world.ask("hi", n=10**9))["param"] == "n"
    assert refused(world.ask("hi", stop=["x"] * 100_000))["param"] == "stop"
    assert refused(world.ask("hi", max_tokens=0))["param"] == "max_tokens"


def test_logit_bias_and_stop_tokens_outside_the_vocabulary(world: World) -> None:
    assert refused(world.ask("hi", logit_bias={"320": 1}))["param"] == "logit_bias"
    assert refused(world.ask("say: a", stop_token_ids=[288]))["param"] == "stop_token_ids"  # 32 and 256 are there
    assert world.ask("say: a", stop_token_ids=[287]).status_code == 200


# Bodies


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe{\x00}\x00",
        b'{"model": "talking", "model": "talking", "messages": []}',
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b"[" * 100_000,
        b'{"model": "talking", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "talking", "messages": [{"role": "user", "content": "\\ud83d"}]}',
        b"--boundary\r\nContent-Disposition: form-data\r\n",
    ],
)
def test_bodies_that_are_no_request(world: World, content: bytes) -> None:
    refused(world.post(content=content))


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_content_type_is_refused(world: World, content_type: str) -> None:
    """A web page may send these three across origins without asking first."""
    error = refused(world.post(content=json.dumps(asking("hi")).encode(), content_type=content_type))
    assert "application/json" in error["message"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8"])
def test_a_body_may_say_that_it_is_utf_8(world: World, charset: str) -> None:
    content = json.dumps(asking("say: ä"), ensure_ascii=False).encode()
    answer = world.post(content=content, content_type=f"application/json; charset={charset}")
    assert answer.json()["choices"][0]["message"]["content"] == "ä"


@pytest.mark.parametrize("charset", ["latin-1", "UTF-16", '"utf-7"', ""])
def test_a_body_in_another_charset_is_refused(world: World, charset: str) -> None:
    content = json.dumps(asking("say: a")).encode()
    error = refused(world.post(content=content, content_type=f"application/json;x=y ; Charset={charset}"))
    assert repr(charset.strip('"').lower()) in error["message"]


def test_a_compressed_body_is_refused(world: World) -> None:
    error = refused(world.post(content=gzip.compress(b"{}" * 100), content_encoding="gzip"))
    assert "content-encoding" in error["message"]


def test_a_body_of_64_megabytes_is_refused_by_its_announcement(world: World) -> None:
    error = refused(world.post(content=b" " * (64 << 20)), 413)
    assert (error["code"], "33,554,432" in error["message"]) == ("request_too_large", True)


def test_a_body_of_64_megabytes_without_announcement_is_refused(world: World) -> None:
    chunks = (b" " * (1 << 20) for _ in range(64))
    headers = {"content-type": "application/json"}
    refused(world.client.post("/v1/chat/completions", content=chunks, headers=headers), 413)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    state_dir = tmp_path_factory.mktemp("small") / "state"
    with running_world(state_dir, max_body_bytes=2000, body_timeout_s=0.5) as world:
        yield world


def test_the_longest_body_is_exact(small_world: World) -> None:
    body = json.dumps(asking("say: a")).encode()
    assert small_world.post(content=body.ljust(2000)).status_code == 200
    refused(small_world.post(content=body.ljust(2001)), 413)


def test_a_body_that_never_comes_is_given_up(small_world: World) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {small_world.key}\r\n"
    body = b'Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a'
    assert b"the body was not complete after 0.5 s" in exchange(small_world.port, head.encode() + body)


def test_bodies_together_have_a_limit_too(small_world: World) -> None:
    """Four of the longest may be on their way at once; the fifth is told to come back."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {small_world.key}\r\n"
    opening = f"{head}Content-Type: application/json\r\nContent-Length: 2000\r\n\r\n".encode() + b" " * 1990
    connections = [socket.create_connection(("127.0.0.1", small_world.port), timeout=10) for _ in range(4)]
    try:
        for connection in connections:
            connection.sendall(opening)
        time.sleep(0.1)
        response = small_world.ask("say: a")
        assert response.status_code == 429
        assert "retry-after-ms" in response.headers
        for connection in connections:
            assert b"400 Bad Request" in receive(connection)  # it timed out
    finally:
        for connection in connections:
            connection.close()
    assert small_world.ask("say: a").status_code == 200


# Heads


def test_headers_of_64_megabytes_are_cut_off(world: World) -> None:
    answer = exchange(world.port, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: ", *[b"a" * (1 << 20)] * 64)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_a_head_that_is_too_long_gets_the_error_object(world: World) -> None:
    answer = exchange(world.port, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 40")
    assert json.loads(body)["error"]["code"] == "invalid_request"


def test_a_head_that_never_ends_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    whole = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n\r\n".encode()
    for opening in (b"", b"GET /v1/models HT", whole[:-2]):
        assert exchange(world.port, opening) == b""
    with socket.create_connection(("127.0.0.1", world.port), timeout=10) as connection:
        for _ in range(2):  # a connection that is kept alive between requests is not cut off
            connection.sendall(whole)
            assert receive(connection).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)
        connection.sendall(whole[:20])  # but one that begins a head and leaves it is
        assert receive(connection) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # the beginning of TLS
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX Y: z\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_the_error_object(world: World, request_bytes: bytes) -> None:
    head, _, body = exchange(world.port, request_bytes).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 40")
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_length_and_chunks_together_can_not_smuggle_a_request(world: World) -> None:
    head = f"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {world.key}\r\n"
    both = f"{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", world.port), timeout=10) as connection:
        connection.sendall((both + "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n").encode())
        while received := connection.recv(65536):  # until the server closes
            answer += received
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


# Paths and models


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat", "/v1/completions", "/v1/models/", "/docs", "/redoc", "/metrics/"]
)
def test_unknown_paths_are_404(world: World, path: str) -> None:
    assert refused(world.client.get(path), 404)["code"] == "not_found"


@pytest.mark.parametrize(
    "model", ["gpt-4", "../../etc/passwd", "talking\u0000", "x" * 4000, "TALKING", "%2e%2e", "тalking"]
)
def test_unknown_models_are_404_in_a_path_and_in_a_body(world: World, model: str) -> None:
    response = world.client.get(f"/v1/models/{urllib.parse.quote(model, safe='')}")
    assert refused(response, 404)["code"] in ("model_not_found", "not_found")
    response = world.post({"model": model, "messages": [{"role": "user", "content": "x"}]})
    assert response.status_code == (400 if len(model) > 200 else 404)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
def test_odd_methods_are_405_with_the_error_object(world: World, method: str) -> None:
    for path in ("/v1/chat/completions", "/v1/models", "/v1/models/talking", "/healthz", "/readyz", "/metrics"):
        response = world.client.request(method, path)
        assert refused(response, 405)["code"] == "method_not_allowed"
        assert response.headers["allow"]
