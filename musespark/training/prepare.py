"""Tokenises the data pack once into numpy files, so that training reads integers.

Texts become one stream of begin-of-text, tokens, end-of-text per domain (uint16). A file that is there is kept: its
name carries the digest of everything it was made from, so another tokenizer or another limit makes another file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from musespark.errors import DataError
from musespark.training.decontamination import decontaminator, sets_in
from musespark.training.shards import read_texts

Piece = tuple[str, bool, bool]  # text, whether it starts its document, whether it ends it
BATCH = 256  # documents handed to the tokenizer's threads at once
LARGEST_PIECE = 100_000  # characters; a whole book as one piece would leave the other threads idle


def load_tokenizer(path: Path) -> Tokenizer:
    """The fast tokenizer, with special-token literals in a text read as ordinary text."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def digest(*parts: object) -> str:
    """Twelve hex digits that change with any of the parts (paths count with name and size)."""
    described = [f"{p.name}:{p.stat().st_size}" if isinstance(p, Path) else repr(p) for p in parts]
    return hashlib.sha256("|".join(described).encode()).hexdigest()[:12]


def prepare_text(
    name: str,
    paths: Iterable[Path],
    tokenizer_path: Path,
    out: Path,
    *,
    max_tokens: int | None = None,
    evaluation_sets: Path | None = None,
) -> Path:
    """Write `out/NAME-DIGEST.npy` with the first `max_tokens` tokens of the given shards; return its path.

    evaluation_sets: a folder of those that no document may share thirteen words with.
    """
    paths = list(paths)
    checked = [] if evaluation_sets is None else ["without", *sets_in(evaluation_sets)]
    target = out / f"{name}-{digest(tokenizer_path.read_bytes(), max_tokens, *paths, *checked)}.npy"
    if target.exists():
        return target
    tokenizer = load_tokenizer(tokenizer_path)
    begin, end = tokenizer.token_to_id("<|begin_of_text|>"), tokenizer.token_to_id("<|end_of_text|>")
    parts: list[np.ndarray] = []
    total = 0
    texts: Iterator[str] = (text for path in paths for text in read_texts(path))
    if evaluation_sets is not None:
        texts = decontaminator(evaluation_sets).clean(texts)
    for batch in _batches(_pieces(texts)):
        encodings = tokenizer.encode_batch_fast([piece for piece, _, _ in batch], add_special_tokens=False)
        for (_, first, last), encoding in zip(batch, encodings, strict=True):
            ids = [begin] * first + encoding.ids + [end] * last
            parts.append(np.array(ids, np.uint16))
            total += len(ids)
        if max_tokens is not None and total >= max_tokens:
            break
    if not parts:
        raise DataError(f"source {name!r} has no text: its shards are empty")
    save_array(target, np.concatenate(parts)[:max_tokens])
    return target


def save_array(target: Path, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.npy")
    np.save(partial, array)
    partial.replace(target)


def _pieces(texts: Iterable[str]) -> Iterator[Piece]:
    """Texts in pieces of at most LARGEST_PIECE characters, cut before a line: (piece, is first, is last)."""
    for text in texts:
        start = 0
        while True:
            stop = start + LARGEST_PIECE
            if stop < len(text):
                newline = text.rfind("\n", start + 1, stop)
                stop = newline if newline > 0 else stop
            last = stop >= len(text)
            yield text[start:stop], start == 0, last
            if last:
                break
            start = stop


def _batches(items: Iterable[Piece]) -> Iterator[list[Piece]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
