"""Conversations to tokens, in the very format that serving uses, with the assistant's tokens marked as learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musespark.chat.messages import Image, Message, Tool
from musespark.chat.templates import ChatSettings, render, render_reply
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import DataError

NANO_SETTINGS = ChatSettings(
    default_system="You are a helpful AI assistant.",
    default_reasoning_effort="low",
    knowledge_cutoff=None,
    include_date=False,
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that end with the assistant's, and the reasoning effort they are rendered with."""

    messages: tuple[Message, ...]
    effort: str = "low"
    tools: tuple[Tool, ...] = ()


def tokenise(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], np.ndarray]:
    """The whole conversation as token ids, and which of them the model is to write (bool, same length)."""
    *before, last = conversation.messages
    prompt = render(before, tokenizer, NANO_SETTINGS, tools=conversation.tools, reasoning_effort=conversation.effort)
    token_ids = prompt.token_ids + render_reply(last, tokenizer)
    return token_ids, assistant_mask(token_ids, tokenizer)


def assistant_mask(token_ids: list[int], tokenizer: Tokenizer) -> np.ndarray:
    """True on what the assistant writes: from after `<|start|>assistant` to the end of its turn, with the end token.

    Where it goes on after `<|eom|>`, it also writes the next `<|start|>assistant`.
    """
    opening = [tokenizer.special("<|start|>"), *tokenizer.encode("assistant")]
    goes_on, done = tokenizer.special("<|eom|>"), tokenizer.special("<|eot|>")
    mask = np.zeros(len(token_ids), bool)
    i = 0
    while i < len(token_ids):
        if token_ids[i : i + len(opening)] != opening:
            i += 1
            continue
        # The server writes the opening of a turn; after its own <|eom|> the model does.
        mask[i : i + len(opening)] = i > 0 and mask[i - 1] and token_ids[i - 1] == goes_on
        i += len(opening)
        while i < len(token_ids):
            mask[i] = True
            i += 1
            if token_ids[i - 1] in (goes_on, done):
                break
    return mask


def write_conversations(target: Path, conversations: Iterable[Conversation], tokenizer: Tokenizer) -> None:
    """Tokenise and write the file that `rows.SampleSource` reads, whole or not at all. Raises DataError for none."""
    tokens: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    files: dict[bytes, int] = {}  # each picture once, however many conversations show it
    image_index: list[int] = []
    image_sample: list[int] = []
    for number, conversation in enumerate(conversations):
        token_ids, mask = tokenise(conversation, tokenizer)
        tokens.append(np.array(token_ids, np.uint16))
        masks.append(mask)
        for part in (part for message in conversation.messages for part in message.content):
            if isinstance(part, Image):
                image_index.append(files.setdefault(part.data, len(files)))
                image_sample.append(number)
    if not tokens:
        raise DataError(f"{target.stem.rpartition('-')[0]} holds no conversation")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.npz")
    np.savez(
        partial,
        tokens=np.concatenate(tokens),
        loss=np.concatenate(masks),
        offsets=np.cumsum([0, *(len(t) for t in tokens)]),
        image_bytes=np.frombuffer(b"".join(files), np.uint8),
        image_offsets=np.cumsum([0, *(len(data) for data in files)]),
        image_index=np.array(image_index, np.int64),
        image_sample=np.array(image_sample, np.int64),
    )
    partial.replace(target)
