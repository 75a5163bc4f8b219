"""POST /v1/chat/completions: one conversation in, its next turn out, whole or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from musespark.accounts.release_stages import Release
from musespark.accounts.verify import Identity
from musespark.api import recording, sse, strict_json
from musespark.api.body import Body
from musespark.api.chat_request import ChatCompletionRequest, parse_request
from musespark.api.chat_response import Formatter
from musespark.api.deps import Services, provider_of, services_of
from musespark.api.errors import error_object
from musespark.api.gate import as_musespark_error
from musespark.api.memory import LARGE_BYTES
from musespark.api.metering import Meter
from musespark.api.openapi import CHAT_BODY
from musespark.api.turn import Turn, note_usage
from musespark.engine.request import Usage
from musespark.errors import ContextTooLong
from musespark.providers.base import ChatEvent, ChatRequest, Provider

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra={"requestBody": CHAT_BODY})
async def create_chat_completion(request: Request) -> Response:
    services, provider = services_of(request), provider_of(request)
    meter = await services.metering.arrive(request.state.identity, request.state.request_id, request.state.headers)
    body = Body(services.bodies)
    try:
        await body.read(request)
        begun = await recording.begin(services.metering, request, body.content)
        if isinstance(begun, Response):
            await meter.end(None, "replayed")
            return begun
        if begun is None:
            return await _answer(request, services, provider, meter, body)
        answer = functools.partial(_answer, services=services, provider=provider, meter=meter, body=body)
        record = recording.record(services.metering, begun, meter, answer, request)
        return await record.follow(request, services.settings.ping_s)
    except BaseException:
        if not meter.handed_over:
            await body.close()
            await meter.end(None, "refused")
        raise


async def _answer(request: Request, services: Services, provider: Provider, meter: Meter, body: Body) -> Response:
    meter.handed_over = True
    withdrawn: list[Usage] = []
    try:
        return await _converse(request, services, provider, meter, body, withdrawn)
    except BaseException:
        for usage in withdrawn:
            note_usage(usage, request)
        await meter.end(withdrawn[0] if withdrawn else None, "aborted" if withdrawn else "refused")
        raise
    finally:
        await body.close()


async def _converse(
    request: Request,
    services: Services,
    provider: Provider,
    meter: Meter,
    body: Body,
    withdrawn: list[Usage],
) -> Response:
    # The id tells which request it was, so that who has only one of the two can ask for what it cost.
    response_id = f"chatcmpl-{request.state.request_id.removeprefix('req_')}"
    # Parsing and base64 take up to a second for a large body: not on the loop that serves everybody.
    large = len(body.content) > LARGE_BYTES
    async with services.large_bodies if large else contextlib.nullcontext():
        understand = functools.partial(_understand, body, response_id, request.state.identity, services, provider)
        asked, chat_request, release = await asyncio.to_thread(understand)
    request.state.headers |= release.headers(time.time())
    meter.model = release.name
    chat_request = replace(chat_request, context_limit=meter.context_limit)
    _note_labels(request, asked)
    # Admission comes before the status is sent, so that a refusal has a status of its own.
    try:
        admission = provider.chat(chat_request, admit=meter.admit, on_withdrawn=withdrawn.append)
        chat = await sse.while_connected(request.receive, admission)
    except ContextTooLong as error:
        if error.param == "max_tokens" and asked.max_completion_tokens is not None:
            error.param = "max_completion_tokens"  # as this client calls it
        raise
    await body.close()
    turn = Turn(chat, meter, request)
    model = replace(provider.model, id=release.name)
    formatter = Formatter(response_id, model, logprobs=bool(asked.logprobs), bill=meter.spending)
    if asked.stream:
        include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        stream = _stream(turn.events(), formatter, chat_request.n, include_usage, request)
        return sse.EventStream(stream, services.settings.ping_s, on_end=turn.end)
    metadata = asked.metadata
    del asked, chat_request  # tens of megabytes with images, and nobody counts them any more
    try:
        completion = await sse.while_connected(request.receive, formatter.whole(turn.events(), metadata))
    finally:
        await turn.end()
    return Response(orjson.dumps(completion), media_type="application/json")


def _understand(
    body: Body, response_id: str, identity: Identity, services: Services, provider: Provider
) -> tuple[ChatCompletionRequest, ChatRequest, Release]:
    asked = parse_request(strict_json.parse(body.take()))
    catalogue = services.accounts.releases.current()
    release = catalogue.admit(identity, asked.model, (provider.model.id,), time.time())
    chat_request = asked.to_request(response_id, identity.cache_salt)
    return asked, replace(chat_request, tenant=identity.organisation_id), release


def _note_labels(request: Request, asked: ChatCompletionRequest) -> None:
    request.state.log |= {"model": asked.model, "stream": bool(asked.stream)}
    labels = {"user": asked.user, "safety_identifier": asked.safety_identifier}
    request.state.log |= {name: label for name, label in labels.items() if label is not None}


async def _stream(
    events: AsyncIterator[ChatEvent], formatter: Formatter, n: int, include_usage: bool, request: Request
) -> AsyncGenerator[bytes]:
    """The events as bytes. A failure is an event too: the status is sent, and silence would look like success."""
    for chunk in formatter.opening(n, include_usage):
        yield sse.event(chunk)
    try:
        async for event in events:
            item = formatter.chunk(event, include_usage)
            if item is not None:
                yield sse.event(item)
    except Exception as error:
        known = as_musespark_error(error, request.state.request_id, request.state.log)
        yield sse.event(error_object(known))
        return
    yield sse.DONE
