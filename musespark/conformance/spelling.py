"""Token ids as a person reads and writes them: control tokens as ⟨name⟩, everything else as text.

The brackets are not those of the tokens' own names, so that the text `<|eot|>`, which somebody may type, and the
control token ⟨eot⟩ can stand in one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from musespark.chat.tokenizer import Tokenizer

_CONTROL = re.compile(r"⟨([^⟩]*)⟩")


def read(spelled: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a spelled text, each run between two control tokens encoded as one string."""
    ids: list[int] = []
    for i, piece in enumerate(_CONTROL.split(spelled)):
        ids += [tokenizer.special(f"<|{piece}|>")] if i % 2 else tokenizer.encode(piece)
    return ids


def spell(token_ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """The inverse. Bytes that are no text are shown as U+FFFD."""
    spelled, run = "", b""
    for token_id in token_ids:
        name = tokenizer.special_name(token_id)
        if name is None:
            run += tokenizer.token_bytes(token_id)
            continue
        spelled += run.decode(errors="replace") + f"⟨{name.removeprefix('<|').removesuffix('|>')}⟩"
        run = b""
    return spelled + run.decode(errors="replace")
