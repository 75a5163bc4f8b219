"""A tokenizer from tiktoken-style ranks: the file `tokenizer.model` that Llama 4 is published with.

Each line holds a token's bytes in base64 and its rank, which is its id; the rank also says which pair of neighbours is
merged first. The `tokenizers` library wants a list of merges instead, so every way to put a token together from two
others becomes a merge with the token's priority. The split pattern and the special tokens, which the file does not
hold, are those of `models/llama4/tokenizer.py` in meta-llama/llama-models.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from musespark.chat.tokenizer import LARGEST_ID, Tokenizer, spell_bytes
from musespark.errors import CheckpointError

MAX_FILE_BYTES = 64 * 1024 * 1024  # Llama 4's has 3.6 MB
MAX_TOKEN_BYTES = 1024  # Llama 4's longest has 128

_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
SPLIT_PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_SUFFIX}?",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_SUFFIX}?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# Special tokens follow the ranks; these are their places among them. The others are reserved.
NUM_SPECIAL = 2048
SPECIAL_PLACES = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|fim_prefix|>": 2,
    "<|fim_middle|>": 3,
    "<|fim_suffix|>": 4,
    "<|header_start|>": 5,
    "<|header_end|>": 6,
    "<|eom|>": 7,
    "<|eot|>": 8,
    "<|step|>": 9,
    "<|python_start|>": 16,
    "<|python_end|>": 17,
    "<|finetune_right_pad|>": 18,
    "<|image_start|>": 80,
    "<|image_end|>": 81,
    "<|tile_x_separator|>": 84,
    "<|tile_y_separator|>": 85,
    "<|image|>": 90,
    "<|patch|>": 92,
    "<|reasoning_thinking_start|>": 1142,
    "<|reasoning_thinking_end|>": 1143,
}


def tokenizer_from_ranks(path: Path) -> Tokenizer:
    """Raises CheckpointError for a file that is not such a list of ranks, naming the line."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes; the limit for a tokenizer is {MAX_FILE_BYTES:,}")
        ranks = _read_ranks(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    return Tokenizer(_describe(ranks), str(path))


def _read_ranks(data: bytes, source: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        encoded, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise CheckpointError(f"{source}, line {number}: {encoded[:40]!r} is not base64") from None
        if not 1 <= len(token) <= MAX_TOKEN_BYTES:
            raise CheckpointError(
                f"{source}, line {number}: a token has {len(token)} bytes, not 1 to {MAX_TOKEN_BYTES}"
            )
        if not rank.isdigit() or len(rank) > 9 or int(rank) > LARGEST_ID:
            raise CheckpointError(f"{source}, line {number}: {rank[:40]!r} is not a rank from 0 to {LARGEST_ID:,}")
        if token in ranks:
            raise CheckpointError(f"{source}, line {number}: the token {token[:40]!r} has two ranks")
        ranks[token] = int(rank)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{source}: its {len(ranks):,} tokens do not have the ranks from 0 on, each once")
    return ranks


def _describe(ranks: dict[bytes, int]) -> dict[str, Any]:
    """The same tokenizer as a `tokenizer.json`."""
    names = {place: name for name, place in SPECIAL_PLACES.items()}
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": len(ranks) + place, "content": names.get(place, f"<|reserved_special_token_{place}|>"), **flags}
            for place in range(NUM_SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a word that is a token is that token, also where no merges lead to it
            "vocab": {spell_bytes(token): rank for token, rank in ranks.items()},
            "merges": _merges(ranks),
        },
    }


def _merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Every pair of tokens that makes a token, by the rank of what it makes."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
        # Where two of the pairs overlap, in `ab a ba` for `aba`, tiktoken merges the left one. It is the one whose
        # first part is a period of the token.
        pairs.sort(key=lambda pair: not (pair[0] + pair[1]).startswith(pair[1]))
        merges += [[spell_bytes(left), spell_bytes(right)] for left, right in pairs]
    return merges
