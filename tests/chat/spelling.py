"""Token ids as people write them: `<|start|>user<|message|>Hi<|eot|>`, for the byte tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from musespark.chat.tokenizer import SPECIAL_TOKENS, Tokenizer

BYTES = Tokenizer.bytes_only()
_NAMES = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")


def read(spelled: str) -> list[int]:
    """The ids: special tokens by name, everything else byte by byte."""
    ids: list[int] = []
    for run in _NAMES.split(spelled):
        ids += [SPECIAL_TOKENS.index(run)] if run in SPECIAL_TOKENS else [32 + byte for byte in run.encode()]
    return ids


def spell(ids: Sequence[int]) -> str:
    """The inverse of `read`. Text that looks like a special token is marked, so that the two can be told apart."""
    spelled, run = "", b""
    for i in [*ids, None]:
        if i is not None and i >= 32:
            run += bytes([i - 32])
            continue
        spelled += _NAMES.sub(r"⟨\1⟩", run.decode())
        run = b""
        spelled += "" if i is None else SPECIAL_TOKENS[i]
    return spelled
