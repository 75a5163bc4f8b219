"""A secret put into every input comes out of no output: not in a response, a log, a metric or the database.

LiteLLM's issues 30670, 18731, 31620, 39964 are what this looks for: keys in error texts, in `param`, in access logs.
"""

from __future__ import annotations

import json
import urllib.parse

import httpx

from musespark.accounts.secret import new_secret
from tests.api.world import LOG, MODEL, World, asking


def test_a_key_put_into_every_input_comes_out_nowhere(world: World) -> None:
    for canary in (world.key, new_secret()):
        answers = [response.text + str(response.headers) for response in responses_to(world, canary)]
        answers.append(world.client.get("/metrics").text)
        state = b"".join(file.read_bytes() for file in world.settings.state_dir.rglob("*") if file.is_file())
        secret_part = canary[12:]  # what comes before is shown in lists, to recognise a key by
        assert not [answer for answer in answers if secret_part in answer]
        assert secret_part not in LOG.getvalue()
        assert secret_part.encode() not in state
        assert repr(world.accounts.list_keys()).count(secret_part) == 0


def responses_to(world: World, canary: str) -> list[httpx.Response]:
    bearer = {"authorization": f"Bearer {canary}"}
    bodies = [
        asking("hi", model=canary),
        asking("hi", **{canary: 1}),
        asking("hi", stop=[canary], user=canary, safety_identifier=canary, prompt_cache_key=canary),
        asking("hi", reasoning_effort=canary[:40]),
        asking("hi", response_format={"type": canary}),
        asking("hi", stream_options={canary: True}, stream=True),
        asking("hi", logit_bias={canary: 1}),
        asking("hi", metadata={canary: 5}),
        {"model": MODEL, "messages": [{"role": canary, "content": "x"}]},
        {"model": MODEL, "messages": [{"role": "user", "content": [{"type": canary}]}]},
        {"model": MODEL, "messages": [{"role": "user", "content": canary * 100}]},
        {"model": MODEL, "messages": [{"role": "tool", "content": "x", "tool_call_id": canary, "name": canary}]},
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"{canary}:x"}}]}],
        },
    ]
    responses = [world.post(body) for body in bodies]
    responses += [world.post(asking("hi"), idempotency_key=canary) for _ in range(2)]
    responses += [
        world.client.get(f"/v1/{path}") for path in (f"requests/{canary}", f"usage?key={canary}&start={canary}")
    ]
    responses += [world.client.get(f"/v1/usage?{name}={canary}") for name in ("key", "model", "bucket", canary)]
    responses.append(world.post(content=f'{{"{canary}": 1, "{canary}": 2}}'.encode()))
    responses.append(world.post(content=json.dumps(asking("hi")).encode(), content_type=canary))
    responses.append(world.post(content=b"{}", content_encoding=canary))
    responses += [
        world.client.get(f"/v1/models/{canary}"),
        world.client.get(f"/{canary}"),
        world.client.get(f"/v1/models?api_key={canary}"),
        world.client.get("/v1/models", headers={"host": f"{canary}.example"}),
        world.client.get("/v1/models", headers={"origin": f"https://{canary}"}),
        world.client.get("/v1/models", headers={"x-request-id": canary, "user-agent": canary, "referer": canary}),
        world.client.request(canary.upper()[:20], "/v1/models"),
        httpx.get(f"{world.url}/v1/models", headers={"authorization": canary}),
        httpx.get(f"{world.url}/v1/models", headers={"authorization": f"Basic {canary}"}),
        httpx.get(f"{world.url}/v1/models", headers={"authorization": f"Bearer {canary}x"}),
        httpx.get(f"{world.url}/v1/models", headers=bearer),
        httpx.get(f"{world.url}/nothing?{urllib.parse.urlencode({'key': canary})}", headers=bearer),
    ]
    return responses


def test_prompts_and_answers_are_not_logged(world: World) -> None:
    said = "a-very-private-thing"
    assert world.ask(f"say: {said}").json()["choices"][0]["message"]["content"] == said
    world.ask(said * 400)  # too long
    world.ask(said, stop=[""], user="x")
    world.post(content=f'{{"{said}": "{said}'.encode())
    assert said not in LOG.getvalue()


def test_every_log_line_is_one_json_object_whatever_was_sent(world: World) -> None:
    world.client.get("/a%0d%0ab%1b%5b31m")
    world.ask("hi", user='a"\n{"event":"forged"}\r\u2028\x85\x9b31m\x7f\x1b[31m\x00')
    world.client.request("FORGED", "/v1/models", headers={"user-agent": "x"})
    for line in LOG.getvalue().splitlines():
        assert json.loads(line)["event"] != "forged"
        assert line.isascii()
        assert line.isprintable()
