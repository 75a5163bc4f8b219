"""A checkpoint's tokenizer as a GGUF holds it: tokens, their types, merges, special ids, and the name of a splitter.

llama.cpp can't read a split pattern from the file: it has a list of named ones. Ours and the published one are matched
exactly; any other is refused, because a wrong one changes the tokens of ordinary words and nothing would say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from musespark.chat.checkpoint_template import find_template
from musespark.chat.ranks import SPLIT_PATTERN
from musespark.chat.tokenizer import Tokenizer, spell_bytes
from musespark.errors import CheckpointError
from musespark.model.config import ModelConfig
from musespark.model.json_file import show

if TYPE_CHECKING:
    from gguf import GGUFWriter

# llama.cpp's token types.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# llama.cpp's name for the published pattern in which combining marks are parts of words, as they should be (Hindi,
# Thai); its "llama4" takes every mark apart. Under either it takes letters outside ASCII for both cases at once, so
# that a word of capitals such as "ÉCOLE" is cut after its first letter; it has no name without that.
SPLITTER = "granite-embed-multi-97m"
DIGITS = r"\p{N}{1,3}"  # in the published pattern; the tokenizers made here have every digit alone
ONE_DIGIT_PATTERN = SPLIT_PATTERN.replace(DIGITS, r"\p{N}")


def write_vocabulary(writer: GGUFWriter, folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Everything under `tokenizer.`, the chat template of the folder included. Raises CheckpointError."""
    vocab_size = config.text.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has ids up to {tokenizer.vocab_size - 1:,}, "
            f"but the vocabulary of config.json ends at {vocab_size:,}"
        )
    model = tokenizer.description["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter(tokenizer))
    tokens, types = _tokens(tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(
        merges or [""]
    )  # llama.cpp wants a list, the package writes no empty one; "" merges nothing
    text = config.text
    named = {"bos": text.bos_token_id, "eos": text.eos_token_id, "pad": text.pad_token_id}
    named |= {"eot": tokenizer.special("<|eot|>"), "eom": tokenizer.special("<|eom|>")}
    for name, token_id in named.items():
        if token_id is not None and token_id < vocab_size:
            getattr(writer, f"add_{name}_token_id")(token_id)
    writer.add_add_bos_token(True)  # every prompt of these families begins with it
    writer.add_add_eos_token(False)
    if (found := find_template(folder)) is not None:
        writer.add_chat_template(found[0])


def splitter(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises CheckpointError if it has none that splits text the same way."""
    description = tokenizer.description
    pattern = _split_pattern(description.get("pre_tokenizer"))
    if pattern == SPLIT_PATTERN or not description["model"]["merges"]:  # without merges, any split gives single bytes
        return SPLITTER
    if pattern == ONE_DIGIT_PATTERN and not _joins_digits(tokenizer):
        # Three digits in a piece or one: without a merge of two, the tokens are the same. llama.cpp has no such name
        # with one digit.
        return SPLITTER
    raise CheckpointError(f"llama.cpp has no pre-tokenizer that splits text by {show(pattern)}")


def _split_pattern(pre_tokenizer: Any) -> str | None:
    """The regular expression of a `Split`, alone or first before a `ByteLevel` without one of its own."""
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    match steps:
        case [{"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", **more}, *rest]:
            plain = all(step.get("type") == "ByteLevel" and step.get("use_regex") is False for step in rest)
            return pattern if plain and not more.get("invert") else None
    return None


def _joins_digits(tokenizer: Tokenizer) -> bool:
    def digits(token: bytes) -> int:
        return sum(character.isnumeric() for character in token.decode("utf-8", errors="ignore"))

    return any(digits(tokenizer.token_bytes(i)) > 1 for i in range(tokenizer.vocab_size))


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int]]:
    """The spelling and the type of every id; those without a token get a name that no text contains."""
    tokens, types = [], []
    ordinary = {t["id"]: t["content"] for t in tokenizer.description.get("added_tokens") or []}
    for i in range(vocab_size):
        special = tokenizer.special_name(i)
        if special is not None:
            spelled, kind = special, CONTROL
        elif i in ordinary:
            spelled, kind = ordinary[i], USER_DEFINED
        elif content := tokenizer.token_bytes(i):
            spelled, kind = spell_bytes(content), NORMAL
        else:
            spelled, kind = f"[PAD{i}]", UNUSED
        tokens.append(spelled)
        types.append(kind)
    return tokens, types
