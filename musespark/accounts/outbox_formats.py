"""How an event of usage looks to others: as a signed CloudEvent, or as Stripe meter events. Pure functions.

CloudEvents 1.0 in the JSON format, signed as Standard Webhooks 1.0 has it: `webhook-id`, `webhook-timestamp`, and in
`webhook-signature` the HMAC-SHA-256 of `id.timestamp.body`. Stripe: one meter event per kind of tokens.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import orjson

if TYPE_CHECKING:  # settings.py needs what is here, and not a database
    from musespark.accounts.outbox import Event

SOURCE = "/musespark"
TYPE = "musespark.usage.v1"
SECRET_PREFIX = "whsec_"
LEAST_SECRET_BYTES = 16
STRIPE_EVENT = "musespark_{unit}"  # the meter's event_name
LONGEST_IDENTIFIER = 100  # Stripe's


@dataclass(frozen=True, slots=True)
class Message:
    """One POST."""

    headers: dict[str, str]
    body: bytes


def secret_bytes(secret: str) -> bytes:
    """The key that signs: base64 after `whsec_`, else the text itself. Raises ValueError if it is empty or short."""
    key = secret.encode()
    if secret.startswith(SECRET_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(f"what follows {SECRET_PREFIX} is not base64") from None
    if len(key) < LEAST_SECRET_BYTES:
        raise ValueError(f"the secret has {len(key)} bytes; one that signs has at least {LEAST_SECRET_BYTES}")
    return key


def cloud_event(event: Event, secret: bytes, now: int) -> Message:
    """The event, signed at `now`. Its id and its body are the same in every attempt."""
    at = datetime.datetime.fromtimestamp(event.data["settled_at"], datetime.UTC)
    body = orjson.dumps(
        {
            "specversion": "1.0",
            "id": event.id,
            "source": SOURCE,
            "type": TYPE,
            "subject": event.organisation_id,
            "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "datacontenttype": "application/json",
            "data": event.data,
        },
        option=orjson.OPT_SORT_KEYS,
    )
    headers = {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": event.id,
        "webhook-timestamp": str(now),
        "webhook-signature": sign(secret, event.id, now, body),
    }
    return Message(headers, body)


def sign(secret: bytes, id: str, timestamp: int, body: bytes) -> str:
    digest = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def stripe_events(event: Event, api_key: str, customer_id: str) -> list[Message]:
    """One meter event per kind of tokens that was used, each with an identifier that never changes."""
    messages = []
    for unit, tokens in event.data["tokens"].items():
        if tokens:
            identifier = f"{event.id}/{unit}"
            assert len(identifier) <= LONGEST_IDENTIFIER, identifier  # request ids are ours
            form = {
                "event_name": STRIPE_EVENT.format(unit=unit),
                "payload[stripe_customer_id]": customer_id,
                "payload[value]": str(tokens),
                "identifier": identifier,
                "timestamp": str(event.data["settled_at"]),
            }
            headers = {
                "content-type": "application/x-www-form-urlencoded",
                "authorization": f"Bearer {api_key}",
                "idempotency-key": identifier,
            }
            messages.append(Message(headers, urlencode(form).encode()))
    return messages
