"""Opens a source of rows by its name in the recipe, tokenising its data on the first use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from musespark.chat.messages import Text
from musespark.chat.tokenizer import Tokenizer
from musespark.errors import DataError
from musespark.training.chat_rows import read_conversations
from musespark.training.conversations import Conversation, write_conversations
from musespark.training.decontamination import Decontaminator, decontaminator, sets_in
from musespark.training.generated import generated_conversations
from musespark.training.instructions import instruction_conversations
from musespark.training.manners import manners_conversations
from musespark.training.pictures import name_conversations, picture_conversations
from musespark.training.prepare import digest, prepare_text
from musespark.training.recipe import ChatData, ChatFile, GeneratedData, Recipe, TextData
from musespark.training.rows import SampleSource, Source, TextSource

BUILDERS: dict[str, Callable[[Path], Iterator[Conversation]]] = {
    "pictures": picture_conversations,
    "names": name_conversations,
    "instructions": instruction_conversations,
    "manners": manners_conversations,
}


def open_source(name: str, recipe: Recipe, data: Path, out: Path) -> Source:
    """The rows of `recipe.sources[name]`. Raises DataError when its files are missing, bad or too small."""
    spec = recipe.sources[name]
    tokenizer = Tokenizer.from_file(recipe.tokenizer)
    tokenised = out / "data"
    evaluation_sets = None if recipe.evaluation_sets is None else data / recipe.evaluation_sets
    source: Source
    if isinstance(spec, TextData):
        path = prepare_text(
            name,
            [data / shard for shard in spec.shards],
            recipe.tokenizer,
            tokenised,
            max_tokens=spec.max_tokens,
            evaluation_sets=evaluation_sets,
        )
        begin = tokenizer.special("<|begin_of_text|>")
        source = TextSource(path, sequence_length=recipe.sequence_length, begin_token_id=begin)
    else:
        path = prepare_chat(name, spec, recipe.tokenizer, tokenizer, data, tokenised, evaluation_sets)
        source = SampleSource(
            path,
            sequence_length=recipe.sequence_length,
            pad_token_id=tokenizer.special("<|finetune_right_pad|>"),
            patch_token_id=tokenizer.special("<|patch|>"),
            message_token_id=tokenizer.special("<|message|>"),
        )
    if not len(source):
        raise DataError(f"source {name!r} gives no row of {recipe.sequence_length} tokens; give it more data")
    return source


def prepare_chat(
    name: str,
    spec: ChatData | ChatFile | GeneratedData,
    tokenizer_path: Path,
    tokenizer: Tokenizer,
    data: Path,
    out: Path,
    evaluation_sets: Path | None = None,
) -> Path:
    """Write the conversations of a builder or of generators, if their file isn't there yet; return its path."""
    conversations: Iterator[Conversation]
    parts: tuple[object, ...]
    if isinstance(spec, GeneratedData):
        conversations = generated_conversations(spec.counts, seed=spec.seed)
        parts = (sorted(spec.counts.items()), spec.seed)
    elif isinstance(spec, ChatFile):
        conversations = read_conversations(spec.path)
        if not spec.path.exists():
            raise DataError(f"{spec.path} does not exist")
        parts = (hashlib.sha256(spec.path.read_bytes()).hexdigest(),)
    else:
        if spec.builder not in BUILDERS:
            raise DataError(f"source {name!r}: there is no builder {spec.builder!r}; there are {', '.join(BUILDERS)}")
        conversations = BUILDERS[spec.builder](data)
        parts = (spec.builder, spec.version)
    if evaluation_sets is not None:
        parts += ("without", *sets_in(evaluation_sets))
    target = out / f"{name}-{digest(tokenizer_path.read_bytes(), *parts)}.npz"
    if not target.exists():
        if evaluation_sets is not None:
            conversations = _without(conversations, decontaminator(evaluation_sets))
        write_conversations(target, conversations, tokenizer)
    return target


def _without(conversations: Iterator[Conversation], known: Decontaminator) -> Iterator[Conversation]:
    """Those in which no message overlaps with what is known."""
    for conversation in conversations:
        texts = (part.text for m in conversation.messages for part in m.content if isinstance(part, Text))
        if any(known.overlaps(text) for text in texts):
            known.dropped += 1
        else:
            yield conversation
