"""Where the time of a request went, for who asks; and the same of all requests in /metrics."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from musespark.engine.engine import Engine
from musespark.engine.stats import RECENT_S, Counters
from tests.api.test_chat import events_of
from tests.api.world import World
from tests.fakes import HashRunner


def test_timings_come_when_they_are_asked_for(world: World) -> None:
    answer = world.ask("think: h; say: abcdef", include_timings=True).json()
    timings = answer["timings"]
    assert set(timings) == {"queue_ms", "prompt_ms", "completion_ms"}
    assert all(0 <= value < 60_000 for value in timings.values())
    assert timings["completion_ms"] > 0
    for nothing in ({}, {"include_timings": False}, {"include_timings": None}):
        assert "timings" not in world.ask("say: a", **nothing).json()


def test_stream_has_timings_in_a_chunk_of_their_own_before_the_usage(world: World) -> None:
    *chunks, timed, done = events_of(world.ask("say: ab", stream=True, include_timings=True))
    assert done == "[DONE]"
    assert timed["choices"] == []
    assert set(timed["timings"]) == {"queue_ms", "prompt_ms", "completion_ms"}
    assert not any("timings" in chunk for chunk in chunks)
    asked = {"stream": True, "include_timings": True, "stream_options": {"include_usage": True}}
    *_, timed, last, _ = events_of(world.ask("say: ab", **asked))
    assert timed["usage"] is None
    assert "timings" in timed
    assert "timings" not in last
    assert last["usage"]["completion_tokens"] > 0


def test_timings_are_asked_for_by_true_and_false_only(world: World) -> None:
    refusal = world.ask("say: a", include_timings="yes")
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "include_timings")


def test_metrics_have_queue_batch_pages_hits_and_times(world: World) -> None:
    def numbers() -> dict[str, float]:
        text = world.client.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^musespark_(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}

    before = numbers()
    prompt = "say: " + "a" * 100
    for _ in range(2):
        world.ask(prompt)
    world.wait_until_idle()
    after = numbers()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["engine_generated_tokens_total"] >= 2 * 100
    assert grown["engine_prompt_tokens_total"] >= 2 * 100
    assert grown["engine_cached_tokens_total"] >= 64
    for name in ("step", "completion"):
        assert grown[f"engine_{name}_seconds_total"] > 0
    assert after["engine_paused_choices"] == after["engine_running_choices"] == after["engine_waiting_choices"] == 0
    assert after["engine_prompt_tokens_per_step"] >= 1
    assert after["kv_full_pages_cached"] > 0
    assert after["engine_tokens_per_second"] >= 0
    assert grown["time_to_first_token_seconds_count"] == 2


@pytest.mark.parametrize(("now_s", "per_s"), [(100.5, 0.0), (101.0, 5.0), (110.9, 5.0), (111.0, 0.0)])
def test_tokens_a_second_are_those_of_the_last_whole_seconds(now_s: float, per_s: float) -> None:
    counters = Counters()
    for _ in range(5 * RECENT_S):
        counters.generated(100.2)
    stats = replace(Engine(HashRunner()).stats(), recent_tokens=tuple(counters.recent.items()))
    assert stats.tokens_per_s(now_s) == per_s


def test_counts_of_old_seconds_are_dropped() -> None:
    counters = Counters()
    for second in range(1000):
        counters.generated(float(second))
    assert len(counters.recent) <= RECENT_S + 1
