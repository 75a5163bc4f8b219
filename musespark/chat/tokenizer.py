"""Text to token ids and back: a byte-level BPE from a Hugging Face `tokenizer.json`, and the special tokens by name.

What people write can never become a control token: the names of the special tokens are known here and not to the BPE
that reads text, so a literal `<|eot|>` in a message is encoded as the seven ordinary characters it is. Ids are resolved
by name, since every checkpoint has its own.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from musespark.errors import CheckpointError, InvalidRequest

# The ids 0 to 31 of the tokenizers made here, in this order. The names are those of the published Muse checkpoints.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start|>",
    "<|message|>",
    "<|eom|>",
    "<|finetune_right_pad|>",
    "<|eot|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|patch|>",
    "<|audio|>",
    "<|vid_start|>",
    "<|vid_end|>",
    "<|vid_frame_separator|>",
    "<|video|>",
    *(f"<|reserved_{i}|>" for i in range(16, 32)),
)
# Without these the chat format can't be written.
REQUIRED_TOKENS: tuple[str, ...] = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
    *("<|image_start|>", "<|image_end|>", "<|patch|>"),
)
# And that of Llama 4, where a tokenizer has its headers instead of ours.
LLAMA4_TOKENS: tuple[str, ...] = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>"),
    *("<|image_start|>", "<|image_end|>", "<|patch|>", "<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
    *("<|python_start|>", "<|python_end|>"),
)

LARGEST_ID = 1 << 24  # far above any published vocabulary

# Longest text given to the BPE at once, in characters: its split pattern backtracks, see `_pieces`.
PIECE_LENGTH = 32_768
# Where a text may be cut without changing its tokens: no token of a byte-level BPE of the GPT-2, Llama or o200k kind
# spans a letter or digit and the space or punctuation that follows. An apostrophe may belong to the word ("don't").
_SAFE_CUT = re.compile(r"[^\W_](?=[\s!-&(-/:-@\[-`{-~、。，！？])")
_CONTROL_NAME = re.compile(r"<\|.*\|>", re.DOTALL)


class Tokenizer:
    """Reads and writes the token ids of one checkpoint. Immutable; safe to share between threads.

    vocab_size: one more than the largest id. Ids from there up, and gaps below, decode to nothing.
    """

    def __init__(self, description: dict[str, Any], source: str) -> None:
        """`description` is a parsed `tokenizer.json`; `source` names it in errors. Raises CheckpointError."""
        self._source = source
        try:
            self._read(description)
        except CheckpointError:
            raise
        except Exception as error:  # wrong types anywhere in the file; the Rust library raises a bare Exception
            raise CheckpointError(f"{source} is not a byte-level BPE in Hugging Face format: {error}") from None
        self._check()

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        try:
            description = json.loads(Path(path).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} can't be read as JSON: {error}") from None
        return cls(description, str(path))

    @classmethod
    def bytes_only(cls, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
        """A tokenizer without a training run: 32 special tokens, or those given, then byte b as the id 32 + b."""
        names = {name: i for i, name in enumerate(special_tokens)}
        byte_names = {character: len(names) + byte for character, byte in _BYTE_OF_CHARACTER.items()}
        flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return cls(
            {
                "version": "1.0",
                "added_tokens": [{"id": i, "content": name, **flags} for name, i in names.items()],
                "normalizer": None,
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
                "post_processor": None,
                "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                "model": {"type": "BPE", "vocab": names | byte_names, "merges": []},
            },
            "the byte tokenizer",
        )

    def save(self, path: Path) -> None:
        """Write the `tokenizer.json` this was made from."""
        path.write_text(json.dumps(self._description, ensure_ascii=False), encoding="utf-8")

    @property
    def description(self) -> dict[str, Any]:
        """The parsed `tokenizer.json` this was made from; not to be changed."""
        return self._description

    def encode(self, text: str) -> list[int]:
        """The ids of a text, none of them a control token. Raises InvalidRequest for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(error.object[error.start]):04X}"
            raise InvalidRequest(f"the text is not valid Unicode: it holds half of a surrogate pair, {half}") from None
        return [i for piece in _pieces(text) for i in self._bpe.encode(piece, add_special_tokens=False).ids]

    def special(self, name: str) -> int:
        """The id of a special token, such as `<|eot|>`. Raises CheckpointError if the checkpoint has none."""
        if name not in self._specials:
            raise CheckpointError(f"{self._source} has no special token {name}")
        return self._specials[name]

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def special_name(self, token_id: int) -> str | None:
        """The name of a special token, such as `<|eot|>`; None for an ordinary one."""
        return self._special_names.get(token_id)

    @property
    def special_names(self) -> Iterable[str]:
        return self._specials.keys()

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, or part of a character's bytes, that a token stands for; empty for a special token."""
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ordinary tokens among `token_ids`; U+FFFD where their bytes are not UTF-8."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def _read(self, description: dict[str, Any]) -> None:
        model = description["model"]
        if model["type"] != "BPE":
            raise CheckpointError(f"{self._source} is a {model['type']} tokenizer; only byte-level BPE is supported")
        added = description.get("added_tokens") or []
        # A token of this look is control even where the file forgot to flag it.
        control = {t["content"]: t["id"] for t in added if t["special"] or _CONTROL_NAME.fullmatch(t["content"])}
        vocab = {name: i for name, i in model["vocab"].items() if name not in control}
        ordinary = [t for t in added if t["content"] not in control]
        ids = vocab | control | {t["content"]: t["id"] for t in ordinary}
        self._check_ids(ids, model["vocab"])
        text_only = description | {
            "added_tokens": ordinary,
            "post_processor": None,
            "truncation": None,
            "padding": None,
            "model": model | {"vocab": vocab},
        }
        self._description = description
        self._bpe = tokenizers.Tokenizer.from_str(json.dumps(text_only))
        self._specials: dict[str, int] = control
        self._special_ids = frozenset(control.values())
        self._special_names = {token_id: name for name, token_id in control.items()}
        self.vocab_size: int = 1 + max(ids.values())
        self._bytes = [b""] * self.vocab_size
        for name, i in vocab.items():
            self._bytes[i] = bytes(_BYTE_OF_CHARACTER[character] for character in name)
        for token in ordinary:
            self._bytes[token["id"]] = token["content"].encode()

    def _check_ids(self, ids: dict[str, Any], vocab: dict[str, Any]) -> None:
        """A control token that shares its id with a letter would let text be control."""
        for name, i in ids.items():
            if type(i) is not int or not 0 <= i <= LARGEST_ID or vocab.get(name, i) != i:
                raise CheckpointError(f"{self._source} gives the token {name!r} a wrong id or two: {i!r}")
        if len(set(ids.values())) != len(ids):
            raise CheckpointError(f"{self._source} gives two tokens the same id")

    def _check(self) -> None:
        """What the house relies on: the names, every byte, text back unchanged, no way in for control ids."""
        required = LLAMA4_TOKENS if "<|header_start|>" in self._specials else REQUIRED_TOKENS
        missing = [name for name in required if name not in self._specials]
        if missing:
            raise CheckpointError(f"{self._source} lacks the special tokens {', '.join(missing)}")
        self.stop_token_ids = frozenset({self.special("<|eot|>"), self.special("<|end_of_text|>")})
        absent = set(_BYTE_OF_CHARACTER.values()) - {b[0] for b in self._bytes if len(b) == 1}
        if absent:
            raise CheckpointError(f"{self._source} has no token for {len(absent)} of the 256 bytes")
        for text in (" a  1\n\té\u0301 ﬁ Ａ 😀", *self._specials):
            ids = self.encode(text)
            if self.decode(ids) != text or not self._special_ids.isdisjoint(ids):
                raise CheckpointError(f"{self._source} does not give the text {text!r} back; it must not change text")


class TextStream:
    """Turns tokens into text as they come, whole characters only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes, often none or several."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left of a character that never became whole, as U+FFFD. The stream starts anew."""
        return self._decoder.decode(b"", final=True)


def _pieces(text: str) -> list[str]:
    """Cut a text into pieces of at most PIECE_LENGTH, between words where there are words.

    The regular expressions of the Rust library give up on a run of about ten million letters or spaces, and take the
    process down with them (a panic, tokenizers 0.23).
    """
    pieces = []
    start = 0
    while len(text) - start > PIECE_LENGTH:
        end = start + PIECE_LENGTH
        cuts = [match.end() for match in _SAFE_CUT.finditer(text, end - 4096, end)]
        end = cuts[-1] if cuts else end
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def spell_bytes(token: bytes) -> str:
    """A token's bytes as a `tokenizer.json` spells them."""
    return "".join(_CHARACTER_OF_BYTE[byte] for byte in token)


def _byte_of_character() -> dict[str, int]:
    """The GPT-2 alphabet: printable Latin-1 bytes stand for themselves, the other 68 are moved up from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(moved)}


_BYTE_OF_CHARACTER = _byte_of_character()
_CHARACTER_OF_BYTE = {byte: character for character, byte in _BYTE_OF_CHARACTER.items()}
