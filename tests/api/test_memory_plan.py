"""One plan for all of the memory: what each part gets by hand-computed cases, and that a real server keeps to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.overload import serving
from musespark.api import memory_plan
from musespark.api.memory_plan import MemoryPlan, check_available, plan_memory, plan_pages
from musespark.api.settings import Settings
from musespark.chat.formats import open_format, open_tokenizer
from musespark.chat.messages import Image, Message, Text
from musespark.errors import ConfigError, InvalidImage, NotEnoughMemory
from musespark.model.checkpoint import BUNDLED
from musespark.providers.base import ChatRequest
from musespark.providers.sizes import check_image_sizes
from tests.chat.image_samples import encoded, picture
from tests.model.files import TOY, toy_config

MIB = 1 << 20
GIB = 1 << 30


# toy: a window of 128 tokens is 2 pages and one for the edge, a step of 512 is 8 and one, the context has 16 pages
LEAST_SLIDING, LEAST_FULL = 3 + 9, 9


def test_plenty_of_memory_gives_twice_what_all_choices_can_use() -> None:
    assert plan_pages(TOY, 1000, 1000, memory_bytes=1 << 30, max_running=16) == (2 * 16 * 16, 2 * 16 * 3 + 9)


def test_the_plan_never_exceeds_the_memory_and_needs_a_least() -> None:
    page = MIB // 4
    least = (LEAST_SLIDING + LEAST_FULL) * page
    assert plan_pages(TOY, page, page, memory_bytes=least, max_running=16) == (LEAST_FULL, LEAST_SLIDING)
    with pytest.raises(ConfigError, match="MUSESPARK_KV_MEMORY_MB is 5; this model needs at least 6"):
        plan_pages(TOY, page, page, memory_bytes=least - 1, max_running=16)
    for memory in (6 * MIB, 20 * MIB, 57 * MIB, 100 * MIB):
        full, sliding = plan_pages(TOY, page, 3 * page // 2, memory_bytes=memory + least, max_running=16)
        assert full * page + sliding * 3 * page // 2 <= memory + least
        assert full >= LEAST_FULL
        assert sliding >= LEAST_SLIDING


def test_a_group_without_layers_costs_nothing() -> None:
    long = toy_config(max_position_embeddings=1 << 20)
    full, sliding = plan_pages(long, 1000, 0, memory_bytes=MIB, max_running=16)
    assert (full, sliding) == (MIB // 1000, 2 * 16 * 3 + 9)
    full, sliding = plan_pages(long, 0, 1000, memory_bytes=MIB, max_running=16)
    assert (full, sliding) == (2 * 16 * (1 << 14), 2 * 16 * 3 + 9)


def plan(memory: int | None, *, weights: int = 100 * MIB, largest: int = MIB, **settings: object) -> MemoryPlan:
    page_bytes = (MIB // 4, MIB // 4)
    return plan_memory(Settings(memory=memory, **settings), TOY, page_bytes, weights=weights, largest_tensor=largest)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of 100 MiB on a machine of 8 GiB, 7 of them free."""
    monkeypatch.setattr(memory_plan, "resident_bytes", lambda: 100 * MIB)
    monkeypatch.setattr(memory_plan, "total_memory_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(memory_plan, "available_memory_bytes", lambda: 7 * GIB)


@pytest.mark.parametrize("memory", [600 * MIB, GIB, 2 * GIB, 8 * GIB])
def test_all_parts_together_are_never_more_than_the_budget(memory: int) -> None:
    planned = plan(memory)
    assert planned.total <= memory
    assert planned.pages == planned.num_full_pages * MIB // 4 + planned.num_sliding_pages * MIB // 4
    rest = planned.program + planned.weights + planned.step + planned.features + planned.requests
    assert planned.total == rest + planned.pages
    # toy has a context of 16 pages and a window of 3: more than this its 16 places can't use
    assert planned.num_full_pages == 2 * 16 * 16 or memory - planned.total < MIB


def test_requests_get_at_most_a_quarter_and_pictures_a_sixteenth() -> None:
    planned = plan(600 * MIB)
    assert planned.requests <= 600 * MIB // 4
    assert planned.max_pixel_bytes == 600 * MIB // 12
    assert planned.features == 600 * MIB // 16
    settings = Settings(memory=600 * MIB)
    assert settings.max_body_bytes == 600 * MIB // 12 // 20
    assert settings.max_image_pixels == int(600 * MIB // 12 / 12.4 / 2)


def test_large_budget_leaves_requests_as_they_are() -> None:
    settings = Settings(memory=16 * GIB)
    assert (settings.max_body_bytes, settings.max_image_pixels) == (32 * MIB, 50_000_000)
    assert Settings(memory=600 * MIB, max_body_bytes=5000).max_body_bytes == 5000


def test_budget_without_room_for_one_request_is_refused_with_the_numbers() -> None:
    assert plan(600 * MIB).num_full_pages
    least = next(memory for memory in range(300 * MIB, 600 * MIB, MIB) if fits(memory))
    assert plan(least).total <= least
    with pytest.raises(NotEnoughMemory, match=r"MUSESPARK_MEMORY is .* too little: .* weights 100.0 MiB .* a step"):
        plan(least - MIB)


def fits(memory: int) -> bool:
    try:
        plan(memory)
    except NotEnoughMemory:
        return False
    return True


def test_tensor_that_is_read_takes_the_place_of_pages_that_are_empty() -> None:
    assert plan(GIB, largest=300 * MIB).total <= GIB
    with pytest.raises(NotEnoughMemory, match=r"900\.0 MiB while they are read"):
        plan(GIB, largest=900 * MIB)


def test_budget_above_the_machine_or_its_container_is_refused() -> None:
    plan(8 * GIB)
    with pytest.raises(ConfigError, match=r"MUSESPARK_MEMORY is 8.00 GiB; this machine or container has 8.00 GiB"):
        plan(8 * GIB + 1)


def test_budget_that_is_not_free_now_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(GIB)
    monkeypatch.setattr(memory_plan, "available_memory_bytes", lambda: planned.total - 100 * MIB)
    check_available(planned, Settings(memory=GIB))
    monkeypatch.setattr(memory_plan, "available_memory_bytes", lambda: planned.total - 100 * MIB - 1)
    with pytest.raises(NotEnoughMemory, match="are free"):
        check_available(planned, Settings(memory=GIB))


def test_without_a_budget_the_settings_say_how_much() -> None:
    planned = plan(None, kv_memory_mb=20)
    assert 19 * MIB < planned.pages <= 20 * MIB
    assert plan(GIB, kv_memory_mb=20).pages <= 20 * MIB


def test_the_table_has_every_part_and_their_sum() -> None:
    planned = plan(GIB)
    lines = planned.table(GIB).splitlines()
    assert lines[0].endswith("of 1.00 GiB:")
    shown = [float(line.split()[-2]) for line in lines[1:]]
    assert sum(shown) == pytest.approx(planned.total / MIB, abs=1)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("500MB", 500_000_000),
        ("1.5GiB", 3 * GIB // 2),
        ("16 GB", 16 * 10**9),
        ("64mib", 64 * MIB),
        ("70000000", 7 * 10**7),
    ],
)
def test_sizes_have_units(text: str, num_bytes: int) -> None:
    assert Settings.read(memory=text).memory == num_bytes


@pytest.mark.parametrize("text", ["16G", "GB", "-1GB", "1e9", "12 apples", "63MiB", "nan"])
def test_sizes_without_a_clear_unit_and_too_small_ones_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="MUSESPARK_MEMORY"):
        Settings.read(memory=text)


def peak_bytes(pid: int) -> int:
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_server_with_the_model_in_the_box_stays_within_its_memory() -> None:
    photo = "data:image/png;base64," + base64.b64encode(encoded(picture(1400, 1000), "PNG")).decode()

    def body(number: int) -> bytes:
        text = f"{number} " + "some words that are many " * (200 + number)
        parts = [{"type": "text", "text": text}]
        if number % 3 == 0:
            parts.append({"type": "image_url", "image_url": {"url": photo}})
        request = {"model": "muse-spark-nano", "max_tokens": 40, "ignore_eos": True, "n": 1 + number % 3}
        return json.dumps(request | {"messages": [{"role": "user", "content": parts}]}).encode()

    async def load(port: int, key: str) -> list[int]:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=40)) as client:
            answers = await asyncio.gather(*(client.post(url, content=body(i), headers=headers) for i in range(40)))
        return [answer.status_code for answer in answers]

    with serving(Path(sys.prefix), running=16, waiting=40, MUSESPARK_MEMORY="600MB") as server:
        statuses = asyncio.run(load(server.port, server.key))
        peak = peak_bytes(server.pid)
    assert statuses.count(200) >= 26  # all that have no picture, for those fill the memory that there is for them
    assert set(statuses) <= {200, 429}
    assert 150_000_000 < peak <= 600_000_000


@pytest.mark.parametrize(("max_pixels", "fits"), [(60_000, True), (59_999, False)])
def test_picture_with_more_pixels_than_the_plan_has_for_it_is_refused_by_its_place(max_pixels: int, fits: bool) -> None:
    content = (Text("what is this?"), Image(encoded(picture(300, 200), "PNG")))
    asked = ChatRequest(id="x", messages=(Message("user", content),), cache_salt=b"")
    chat = open_format(BUNDLED, "muse_spark", open_tokenizer(BUNDLED))
    try:
        with contextlib.nullcontext() if fits else pytest.raises(InvalidImage, match="takes 59,999") as refusal:
            check_image_sizes(asked, chat, 1000, max_pixels)
    finally:
        chat.close()
    if refusal is not None:
        assert refusal.value.param == "messages.0.content.1"
