"""POST /v1/chat/completions: one conversation in, its next turn out, whole or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from musespark.accounts.verify import Identity
from musespark.api import sse, strict_json
from musespark.api.chat_request import ChatCompletionRequest, parse_request
from musespark.api.chat_response import Formatter
from musespark.api.deps import Services, provider_of, services_of
from musespark.api.errors import error_object
from musespark.api.gate import as_musespark_error
from musespark.api.memory import LARGE_BYTES
from musespark.api.metering import Meter
from musespark.api.openapi import CHAT_BODY
from musespark.engine.request import Usage
from musespark.errors import ContextTooLong, ModelNotFound
from musespark.providers.base import ChatEvent, ChatRequest, ChatStream, Provider

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra={"requestBody": CHAT_BODY})
async def create_chat_completion(request: Request) -> Response:
    services, provider = services_of(request), provider_of(request)
    meter = await services.metering.arrive(request.state.identity, request.state.request_id, request.state.headers)
    used: list[Usage] = []  # by a request that was withdrawn
    try:
        return await _answer(request, services, provider, meter, used.append)
    except BaseException:
        for usage in used:
            _note_usage(usage, request)
        await meter.end(used[0] if used else None)
        raise


async def _answer(
    request: Request, services: Services, provider: Provider, meter: Meter, on_withdrawn: Callable[[Usage], None]
) -> Response:
    response_id = f"chatcmpl-{secrets.token_hex(12)}"
    async with services.bodies.read(request) as body:
        # Parsing and base64 take up to a second for a large body: not on the loop that serves everybody.
        large = len(body) > LARGE_BYTES
        async with services.large_bodies if large else contextlib.nullcontext():
            asked, chat_request = await asyncio.to_thread(
                _understand, body, response_id, request.state.identity, provider.model.id
            )
        del body
        chat_request = replace(chat_request, context_limit=meter.context_limit)
        _note_labels(request, asked)
        # Admission comes before the status is sent, so that a refusal has a status of its own.
        try:
            admission = provider.chat(chat_request, admit=meter.admit, on_withdrawn=on_withdrawn)
            chat = await sse.while_connected(request.receive, admission)
        except ContextTooLong as error:
            if error.param == "max_tokens" and asked.max_completion_tokens is not None:
                error.param = "max_completion_tokens"  # as this client calls it
            raise
    formatter = Formatter(response_id, provider.model, logprobs=bool(asked.logprobs))
    events = _timed(chat, request)
    if asked.stream:
        include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        stream = _stream(events, formatter, chat_request.n, include_usage, request)
        return sse.EventStream(stream, services.settings.ping_s, on_end=lambda: _end(chat, meter, request))
    metadata = asked.metadata
    del asked, chat_request  # tens of megabytes with images, and nobody counts them any more
    try:
        completion = await sse.while_connected(request.receive, formatter.whole(events, metadata))
    finally:
        await _end(chat, meter, request)
    return Response(orjson.dumps(completion), media_type="application/json")


def _understand(
    body: bytes, response_id: str, identity: Identity, model_id: str
) -> tuple[ChatCompletionRequest, ChatRequest]:
    asked = parse_request(strict_json.parse(body))
    if asked.model != model_id:
        raise ModelNotFound(f"there is no model {asked.model[:100]!r}; this server has {model_id!r}", param="model")
    chat_request = asked.to_request(response_id, identity.cache_salt)
    return asked, replace(chat_request, tenant=identity.organisation_id)


def _note_labels(request: Request, asked: ChatCompletionRequest) -> None:
    request.state.log |= {"model": asked.model, "stream": bool(asked.stream)}
    labels = {"user": asked.user, "safety_identifier": asked.safety_identifier}
    request.state.log |= {name: label for name, label in labels.items() if label is not None}


async def _timed(events: AsyncIterator[ChatEvent], request: Request) -> AsyncIterator[ChatEvent]:
    """The same events; the first one's time goes to the metrics."""
    first = True
    async for event in events:
        if first:
            services_of(request).metrics.first_token(time.perf_counter() - request.state.started_s)
            first = False
        yield event


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


async def _end(chat: ChatStream, meter: Meter, request: Request) -> None:
    """Whatever happened: free what the request holds, and note what it used."""
    await chat.aclose()
    await meter.end(chat.usage)
    if chat.usage is not None:
        _note_usage(chat.usage, request)


def _note_usage(usage: Usage, request: Request) -> None:
    services_of(request).metrics.usage(usage)
    request.state.log |= {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }
