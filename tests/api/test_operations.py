"""What operators see: readiness, metrics, models."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from musespark.engine.runner import Batch, Float32
from tests.api.world import MODEL, World, running_world


def samples(world: World) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of /metrics, read by Prometheus's own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(world.client.get("/metrics").text)
        for sample in family.samples
    }


def test_requests_and_tokens_are_counted(world: World) -> None:
    before = samples(world)
    usage = world.ask("think: hm; say: hello", n=2).json()["usage"]
    world.ask("hi", temperature=9)
    after = samples(world)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    route = {"method": "POST", "route": "/v1/chat/completions"}
    assert grown("musespark_http_requests_total", **route, status="200") == 1
    assert grown("musespark_http_requests_total", **route, status="400") == 1
    assert grown("musespark_http_request_seconds_count", route="/v1/chat/completions") == 2
    assert grown("musespark_time_to_first_token_seconds_count") == 1
    assert grown("musespark_tokens_total", kind="prompt") == usage["prompt_tokens"]
    assert grown("musespark_tokens_total", kind="completion") == usage["completion_tokens"]
    assert grown("musespark_tokens_total", kind="reasoning") == usage["completion_tokens_details"]["reasoning_tokens"]
    assert grown("musespark_tokens_total", kind="cached") == usage["prompt_tokens_details"]["cached_tokens"]


def test_the_engine_shows_its_pages(world: World) -> None:
    world.wait_until_idle()
    values = {name: value for (name, _), value in samples(world).items()}
    assert values["musespark_engine_ready"] == 1
    assert values["musespark_kv_full_pages_used"] == 0
    assert values["musespark_kv_full_pages_free"] + values["musespark_kv_full_pages_cached"] == 512
    assert values["musespark_engine_steps_total"] > 0


def test_what_only_grows_is_a_counter_and_the_rest_a_gauge(world: World) -> None:
    families = list(text_string_to_metric_families(world.client.get("/metrics").text))
    kinds = {sample.name: family.type for family in families for sample in family.samples}
    assert kinds["musespark_engine_steps_total"] == kinds["musespark_engine_overloaded_total"] == "counter"
    assert kinds["musespark_engine_running_choices"] == kinds["musespark_kv_full_pages_free"] == "gauge"


def test_what_clients_send_never_becomes_a_label(world: World) -> None:
    for i in range(5):
        world.client.get(f"/nothing/{i}")
        world.client.request(f"METHOD{i}", "/v1/models")
        world.client.get(f"/v1/models/nothing{i}")
    text = world.client.get("/metrics").text
    assert "nothing" not in text
    assert "METHOD" not in text
    assert 'route="unmatched"' in text
    assert 'method="other"' in text


def test_a_failed_engine_is_not_one_that_is_shutting_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_batch: Batch) -> Float32:
        raise RuntimeError("the runner is broken")

    with running_world(tmp_path / "state") as world:
        assert world.client.get("/readyz").status_code == 200
        monkeypatch.setattr(world.runner, "forward", fail)
        assert world.ask("say: hello").json()["error"]["code"] == "engine_failed"
        ready = world.client.get("/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "engine_stopped")
        assert world.client.get("/healthz").status_code == 200
    with running_world(tmp_path / "state") as world:
        asyncio.run(world.service.close(0.0))
        ready = world.client.get("/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "shutting_down")


def test_models_are_listed_and_found(world: World) -> None:
    listed = world.client.get("/v1/models").json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert {name: model[name] for name in ("id", "object", "created", "owned_by")} == {
        "id": MODEL,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "tests",
    }
    assert (model["context"], model["max_output"]) == (4096, 4095)
    assert model["modalities"] == {"input": ["text", "image"], "output": ["text"]}
    # With nothing configured it is public, free, and its callers' data is theirs.
    assert (model["stage"], model["launch_at"], model["shutdown_date"], model["alias_of"]) == (
        "public",
        None,
        None,
        None,
    )
    assert {price["nano_usd"] for price in model["prices"]} == {0}
    assert model["data_policy"]["training"] is False
    assert world.client.get(f"/v1/models/{MODEL}").json() == model


def test_every_answer_has_a_request_id_of_its_own(world: World) -> None:
    ids = [
        world.client.get(path).headers["x-request-id"] for path in ("/healthz", "/v1/models", "/nothing", "/metrics")
    ]
    assert len(set(ids)) == 4
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", request_id) for request_id in ids)
