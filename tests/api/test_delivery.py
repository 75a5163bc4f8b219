"""Usage sent to a local receiver that checks signatures, fails, hangs up, and sees nothing lost."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from musespark.accounts.outbox import Outbox, set_stripe_customer
from musespark.api.delivery import Delivery, exporting
from musespark.api.settings import Settings
from musespark.errors import ConfigError
from tests.api.customer import Customer, price_list
from tests.api.world import MODEL, World, running_world

SECRET = "a secret of some length"


class Receiver:
    """Keeps what was sent to it; answers with the statuses that it is told, then 204."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/usage"
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []

    def answer(self, headers: dict[str, str], body: bytes) -> int:
        self.received.append((headers, body))
        return self.statuses.pop(0) if self.statuses else 204

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.received]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = kept.answer({name.lower(): value for name, value in self.headers.items()}, body)
            if status:
                self.send_response(status)
                self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield kept
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def exporting_world(state_dir: Path, receiver: Receiver, format: str = "cloudevents") -> Iterator[World]:
    settings = {"export_url": receiver.url, "export_secret": SECRET, "export_format": format}
    with running_world(state_dir, **settings) as world, exporting(world.accounts, world.settings):
        price_list(world.accounts, MODEL)
        yield world


def signed_as_we_know_it(headers: dict[str, str], body: bytes) -> bool:
    """Checked as a receiver would, by the text of Standard Webhooks."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET.encode(), content, "sha256").digest()).decode()
    fresh = abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    return fresh and headers["webhook-signature"] == f"v1,{expected}"


def test_every_request_is_told_signed_and_once_if_all_goes_well(tmp_path: Path, receiver: Receiver) -> None:
    with exporting_world(tmp_path / "state", receiver) as world:
        customer = Customer(world.accounts, world.url, MODEL)
        usages = [customer.ask(f"say: {text}").json()["usage"] for text in ("a", "bb")]
        world.wait_until(lambda: len(receiver.received) == 2)
        world.wait_until(lambda: Outbox(world.accounts.database).pending() == 0)
    assert all(signed_as_we_know_it(*one) for one in receiver.received)
    events = receiver.events()
    assert sum(event["data"]["amount_nano"] for event in events) == sum(u["billing"]["amount_nano_usd"] for u in usages)
    assert sum(sum(event["data"]["tokens"].values()) for event in events) == sum(u["total_tokens"] for u in usages)
    assert {event["id"] for event in events} == {f"{usage['billing']['hold_id']}/0" for usage in usages}


def test_a_receiver_that_fails_gets_the_same_event_again(tmp_path: Path, receiver: Receiver) -> None:
    receiver.statuses = [302, 0]  # a redirect that nobody follows, and a broken connection
    with exporting_world(tmp_path / "state", receiver) as world:
        Customer(world.accounts, world.url, MODEL).ask("say: a")
        world.wait_until(lambda: len(receiver.received) == 3, timeout_s=20)
        world.wait_until(lambda: Outbox(world.accounts.database).pending() == 0)
    assert len({body for _, body in receiver.received}) == 1
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert all(signed_as_we_know_it(*one) for one in receiver.received)


def test_what_a_deliverer_that_died_has_sent_is_sent_again_with_its_id(tmp_path: Path, receiver: Receiver) -> None:
    with running_world(tmp_path / "state") as world:
        from musespark.accounts import outbox

        world.accounts.ledger.on_settled(outbox.write)
        Customer(world.accounts, world.url, MODEL).ask("say: a")
        box = Outbox(world.accounts.database)
        dying = Delivery(box, receiver.url, SECRET, "cloudevents")
        box.delivered = lambda _event: None  # type: ignore[method-assign]  # it dies between sending and noting it
        assert dying.deliver_once() == 1
        after = Delivery(Outbox(world.accounts.database), receiver.url, SECRET, "cloudevents")
        assert after.deliver_once() == 0
        assert after.deliver_once(time.time() + 61) == 1
        dying.close()
        after.close()
    first, second = receiver.events()
    assert first == second


def test_stripe_hears_of_customers_that_it_has(tmp_path: Path, receiver: Receiver) -> None:
    with exporting_world(tmp_path / "state", receiver, "stripe") as world:
        known, unknown = (Customer(world.accounts, world.url, MODEL) for _ in range(2))
        set_stripe_customer(world.accounts.database, known.organisation_id, "cus_1")
        unknown.ask("say: a")
        known.ask("say: b")
        world.wait_until(lambda: len(receiver.received) == 2)
        assert Outbox(world.accounts.database).pending() <= 2
    assert all(b"cus_1" in body for _, body in receiver.received)
    assert {headers["authorization"] for headers, _ in receiver.received} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("https://example.com/x", None),
        ("https://example.com/x", ""),
        ("https://example.com/x", "too short"),
        ("https://example.com/x", "whsec_"),
        (None, SECRET),
        ("http://example.com/x", SECRET),
        ("ftp://example.com/x", SECRET),
    ],
)
def test_without_a_good_secret_and_a_safe_url_the_server_does_not_start(
    monkeypatch: pytest.MonkeyPatch, url: str | None, secret: str | None
) -> None:
    for name, value in (("URL", url), ("SECRET", secret)):
        if value is not None:
            monkeypatch.setenv(f"MUSESPARK_EXPORT_{name}", value)
    with pytest.raises(ConfigError, match="EXPORT") as refused:
        Settings.read()
    assert SECRET not in refused.value.message


def test_with_both_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_EXPORT_URL", "http://127.0.0.1:9/x")
    monkeypatch.setenv("MUSESPARK_EXPORT_SECRET", SECRET)
    assert SECRET not in repr(Settings.read())
