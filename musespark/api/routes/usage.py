"""GET /v1/usage: what an organisation has used, by time and by model, project or key, as JSON or CSV."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
from typing import Any, cast

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from musespark.accounts import usage
from musespark.accounts.tables.prices import PRICE_UNITS
from musespark.accounts.usage import Granularity, Query
from musespark.api.deps import services_of
from musespark.errors import InvalidRequest

router = APIRouter()

_TIME = {"type": "string", "description": "UTC seconds since 1970, or ISO 8601"}
PARAMETERS: dict[str, dict[str, Any]] = {
    "bucket": {"type": "string", "enum": ["hour", "day"], "default": "day"},
    "start": _TIME,
    "end": _TIME,
    "group_by": {"type": "string", "description": "any of model, project and key, separated by commas"},
    "model": {"type": "string"},
    "project": {"type": "string"},
    "key": {"type": "string"},
    "format": {"type": "string", "enum": ["json", "csv"], "default": "json"},
}
DESCRIBED = [{"name": name, "in": "query", "required": False, "schema": of} for name, of in PARAMETERS.items()]


_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


@router.get("/v1/usage", openapi_extra={"parameters": DESCRIBED}, responses=_CSV)
async def read_usage(request: Request) -> Response:
    """`bucket` hour or day, `start` and `end` in UTC seconds or as ISO 8601, `group_by` model, project, key."""
    query, as_csv = parse(request)
    database = services_of(request).accounts.database
    rows = await asyncio.to_thread(usage.report, database, query)
    if as_csv:
        return Response(to_csv(query, rows), media_type="text/csv")
    seconds = usage.SECONDS[query.granularity]
    body = {
        "object": "list",
        "bucket": query.granularity,
        "start": query.start // seconds * seconds,
        "end": query.end,
        "data": [row_object(row, seconds) for row in rows],
    }
    return Response(orjson.dumps(body), media_type="application/json")


def parse(request: Request) -> tuple[Query, bool]:
    """Raises InvalidRequest naming the parameter, also for one that is not known or comes twice."""
    given: dict[str, str] = {}
    groups: list[str] = []
    for name, value in request.query_params.multi_items():
        if name not in PARAMETERS:
            known = ", ".join(PARAMETERS)
            raise InvalidRequest(f"there is no parameter {name[:40]!r}; there are {known}", param=name[:40])
        if name == "group_by":
            groups += value.split(",")
        elif name in given:
            raise InvalidRequest(f"`{name}` is given twice", param=name)
        else:
            given[name] = value
    bucket, form = given.get("bucket", "day"), given.get("format", "json")
    if bucket not in usage.SECONDS:
        raise InvalidRequest(f"`bucket` is {bucket[:40]!r}; it must be hour or day", param="bucket")
    if form not in ("json", "csv"):
        raise InvalidRequest(f"`format` is {form[:40]!r}; it must be json or csv", param="format")
    granularity = cast(Granularity, bucket)
    start, end = usage.default_range(granularity)
    if "end" in given:
        end = moment("end", given["end"])
        start += end - usage.default_range(granularity)[1]
    if "start" in given:
        start = moment("start", given["start"])
    query = Query(
        request.state.identity.organisation_id,
        granularity,
        max(start, 0),
        end,
        usage.groupings(groups),
        given.get("model"),
        given.get("project"),
        given.get("key"),
    )
    return query, form == "csv"


def moment(name: str, text: str) -> int:
    """UTC seconds from a number or an ISO 8601 date or time; without an offset it is UTC. Raises InvalidRequest."""
    if text.isdecimal() and text.isascii() and len(text) <= 13:
        return int(text)
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        message = f"`{name}` is {text[:40]!r}; write UTC seconds since 1970, or a time as 2026-11-25T10:00:00Z"
        raise InvalidRequest(message, param=name) from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)
    return int(at.timestamp())


def row_object(row: dict[str, Any], seconds: int) -> dict[str, Any]:
    tokens = {f"{unit}_tokens": row[unit] for unit in PRICE_UNITS}
    groups = {name: row[name] for name in ("model", "project_id", "key_id") if name in row}
    times = {"start": row["start"], "end": row["start"] + seconds}
    total = sum(tokens.values())
    return {
        **times,
        **groups,
        "requests": row["requests"],
        **tokens,
        "total_tokens": total,
        "amount_nano": row["amount_nano"],
    }


def to_csv(query: Query, rows: list[dict[str, Any]]) -> str:
    """The same rows; times in ISO 8601, which spreadsheets know. A name that looks like a formula is no formula."""
    numbers = ("requests", *(f"{unit}_tokens" for unit in PRICE_UNITS), "total_tokens", "amount_nano")
    columns = ("start", "end", *query.group_by, *numbers)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = row_object(row, usage.SECONDS[query.granularity])
        for name in ("start", "end"):
            values[name] = datetime.datetime.fromtimestamp(values[name], datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        writer.writerow([harmless(values[name]) for name in columns])
    return text.getvalue()


def harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value
