"""Sends the outbox to where the settings say, in a thread of its own: at least once, with stable ids, again and again.

Whatever is wrong with a receiver, it slows down nobody but itself: requests are settled without it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Literal

import httpx

from musespark.accounts.accounts import Accounts
from musespark.accounts.outbox import Event, Outbox, write
from musespark.accounts.outbox_formats import Message, cloud_event, secret_bytes, stripe_events
from musespark.api.settings import Settings

log = logging.getLogger(__name__)

BATCH = 50
IDLE_S = 0.5
TIMEOUT_S = 10.0

Format = Literal["cloudevents", "stripe"]


class Delivery:
    """`start` and `close` it. `deliver_once` is one round, for tests and for both."""

    def __init__(self, outbox: Outbox, url: str, secret: str, format: Format, *, idle_s: float = IDLE_S) -> None:
        self._outbox = outbox
        self._url = url
        self._secret = secret
        self._format = format
        self._idle_s = idle_s
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)  # a redirect could lead anywhere
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def deliver_once(self, now: float | None = None) -> int:
        """Try what is due. Returns how many events were delivered."""
        num_delivered = 0
        for event in self._outbox.claim(BATCH, now):
            if self._stopped.is_set():
                break  # its lease ends by itself
            error = self._send(event)
            if error is None:
                self._outbox.delivered(event)
                num_delivered += 1
            elif not self._outbox.failed(event, error, now):
                log.error("the event %s was given up: %s", event.id, error)
        return num_delivered

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                if self.deliver_once():
                    continue
            except Exception as error:  # the database may be away
                log.warning("usage can't be exported now: %s", error)
            self._stopped.wait(self._idle_s)

    def _send(self, event: Event) -> str | None:
        """None if the receiver has all of it; else what was wrong, without what the receiver said of secrets."""
        messages = self._messages(event)
        if isinstance(messages, str):
            return messages
        for message in messages:
            try:
                answer = self._client.post(self._url, content=message.body, headers=message.headers)
            except httpx.HTTPError as error:
                return type(error).__name__
            if not answer.is_success:
                return f"status {answer.status_code}"
        return None

    def _messages(self, event: Event) -> list[Message] | str:
        if self._format == "cloudevents":
            return [cloud_event(event, secret_bytes(self._secret), int(time.time()))]
        customer_id = self._outbox.customer_of(event.organisation_id)
        if customer_id is None:
            return "the organisation has no customer at Stripe"
        return stripe_events(event, self._secret, customer_id)


@contextlib.contextmanager
def exporting(accounts: Accounts, settings: Settings) -> Iterator[None]:
    """While the block runs, usage is written to the outbox and sent, if the settings say where to."""
    if settings.export_url is None or settings.export_secret is None:
        yield
        return
    accounts.ledger.on_settled(write)
    secret = settings.export_secret.get_secret_value()
    delivery = Delivery(Outbox(accounts.database), settings.export_url, secret, settings.export_format)
    delivery.start()
    try:
        yield
    finally:
        delivery.close()
