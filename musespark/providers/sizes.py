"""How large a request's prompt will be at the least, told before anything of it is rendered or decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator

from musespark.chat.formats import ChatFormat
from musespark.chat.image_files import read_header
from musespark.chat.messages import Image, Text
from musespark.engine.request import Request
from musespark.errors import ContextTooLong, InvalidImage, InvalidRequest
from musespark.providers.base import ChatRequest, PromptSize

ESCAPE_LENGTH = 6  # `\\u0041` in the JSON of a tool's arguments is one character of the prompt


def images_of(request: ChatRequest) -> Iterator[tuple[str, Image]]:
    """The images of a request in the order of the prompt, each with its path in the request."""
    for i, message in enumerate(request.messages):
        for j, part in enumerate(message.content):
            if isinstance(part, Image):
                yield f"messages.{i}.content.{j}", part


def text_length(request: ChatRequest) -> int:
    """How many characters the texts of a request have in the prompt, at least.

    All that a client may make long: contents, also of tool results, reasoning, the arguments of tool calls, and the
    tools, which every system message repeats.
    """
    total = 0
    for message in request.messages:
        total += sum(len(part.text) for part in message.content if isinstance(part, Text))
        total += len(message.reasoning or "")
        total += sum(len(call.arguments) // ESCAPE_LENGTH for call in message.tool_calls)
    if request.tools:
        tools = [(offered.tool.description, offered.tool.parameters) for offered in request.tools]
        repeated = sum(message.role == "system" for message in request.messages)
        total += len(json.dumps(tools, ensure_ascii=False, separators=(",", ":"))) * max(1, repeated)
    return total


def check_text_size(num_characters: int, longest_token: int, limit: int) -> None:
    """Refuse by their length texts that no context holds: encoding them takes up to a second a megabyte."""
    num_tokens = num_characters // longest_token  # at least: a token has that many bytes at the most
    if num_tokens >= limit:
        raise ContextTooLong(
            f"the texts have {num_characters:,} characters, which are at least {num_tokens:,} tokens; this model "
            f"takes {limit:,}; shorten them",
            param="messages",
        )


def check_image_sizes(request: ChatRequest, chat: ChatFormat, limit: int, max_pixels: int | None = None) -> None:
    """Refuse by their headers images that no context holds or that have too many pixels, before one is decoded."""
    num_tokens = 0
    for place, image in images_of(request):
        try:
            header = read_header(image.data)
            if max_pixels is not None and header.width * header.height > max_pixels:
                raise InvalidImage(
                    f"the image has {header.width} x {header.height} pixels, {header.width * header.height:,}; this "
                    f"server takes {max_pixels:,}; send a smaller one"
                )
            num_tokens += chat.count_image_tokens(header.width, header.height)
        except InvalidRequest as error:
            error.param = place
            raise
    if num_tokens >= limit:
        raise ContextTooLong(
            f"the images alone take {num_tokens:,} tokens, this model takes {limit:,}; send fewer or smaller ones",
            param="messages",
        )


def check_context_limit(request: ChatRequest, num_prompt: int, max_tokens: int) -> None:
    """Refuse what is longer than the caller may have; what is longer than the model can take the engine refuses."""
    limit = request.context_limit
    if limit is not None and num_prompt + max_tokens > limit:
        raise ContextTooLong(
            f"the prompt has {num_prompt:,} tokens and the answer may have {max_tokens:,}; your limit for both is "
            f"{limit:,}; shorten the conversation or lower max_tokens",
            param="messages" if num_prompt >= limit or request.max_tokens is None else "max_tokens",
        )


def prompt_size(request: Request) -> PromptSize:
    return PromptSize(
        text_tokens=len(request.prompt) - request.image_tokens,
        image_tokens=request.image_tokens,
        num_images=len(request.images),
        most_completion_tokens=request.n * request.sampling.max_tokens,
    )
