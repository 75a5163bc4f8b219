"""Token ids as people write them: `<|start|>user<|message|>Hi<|eot|>`, for the byte tokenizers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from musespark.chat.tokenizer import LLAMA4_TOKENS, SPECIAL_TOKENS, Tokenizer

BYTES = Tokenizer.bytes_only()
LLAMA4_BYTES = Tokenizer.bytes_only(LLAMA4_TOKENS)


def read(spelled: str, names: Sequence[str] = SPECIAL_TOKENS) -> list[int]:
    """The ids: special tokens by name, everything else byte by byte."""
    ids: list[int] = []
    for run in _pattern(names).split(spelled):
        ids += [names.index(run)] if run in names else [len(names) + byte for byte in run.encode()]
    return ids


def spell(ids: Sequence[int], names: Sequence[str] = SPECIAL_TOKENS) -> str:
    """The inverse of `read`. Text that looks like a special token is marked, so that the two can be told apart."""
    spelled, run = "", b""
    for i in [*ids, None]:
        if i is not None and i >= len(names):
            run += bytes([i - len(names)])
            continue
        spelled += _pattern(names).sub(r"⟨\1⟩", run.decode())
        run = b""
        spelled += "" if i is None else names[i]
    return spelled


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, names)) + ")")
