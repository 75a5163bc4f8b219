"""Reads the evaluation sets: questions with choices, BLiMP's pairs of sentences, held-out documents.

A bad row raises DataError, which names file and line.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from musespark.errors import DataError


@dataclass(frozen=True, slots=True)
class Pair:
    id: str
    good: str
    bad: str
    paradigm: str  # BLiMP's `uid`: 1,000 pairs from one template
    field: str


@dataclass(frozen=True, slots=True)
class MultipleChoice:
    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


def read_pairs(path: Path) -> Iterator[Pair]:
    for where, row in _rows(path):
        values = [row.get(name) for name in ("id", "good", "bad", "uid", "field")]
        if not all(isinstance(value, str) and value for value in values):
            raise DataError(f"{where}: id, good, bad, uid and field must be texts that are not empty")
        yield Pair(*map(str, values))


def read_choices(path: Path) -> Iterator[MultipleChoice]:
    for where, row in _rows(path):
        choices, answer = row.get("choices"), row.get("answer")
        texts = [row.get("id"), row.get("question"), *(choices if isinstance(choices, list) else [None])]
        if not all(isinstance(text, str) and text for text in texts):
            raise DataError(f"{where}: id, question and every one of choices must be texts that are not empty")
        assert isinstance(choices, list)
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise DataError(f"{where}: answer must be an index into the {len(choices)} choices, not {answer!r}")
        yield MultipleChoice(row["id"], row["question"], tuple(choices), answer)


def read_documents(path: Path) -> Iterator[str]:
    for where, row in _rows(path):
        text = row.get("text")
        if not isinstance(text, str) or not text:
            raise DataError(f"{where}: text must be a string that is not empty")
        yield text


def read_named_pictures(path: Path) -> Iterator[tuple[bytes, str]]:
    """(encoded picture, name as an answer) of a tar: NNNNNN.png or .jpg followed by NNNNNN.json."""
    family = path.stem.removeprefix("valid-").rsplit("-", 1)[0]
    try:
        with tarfile.open(path) as tar:
            picture: tuple[str, bytes] | None = None
            for member in tar:
                file = tar.extractfile(member)
                if file is None:
                    continue
                stem, _, suffix = member.name.rpartition(".")
                if suffix != "json":
                    picture = stem, file.read()
                    continue
                row = json.loads(file.read())
                if picture is None or picture[0] != stem or not isinstance(row, dict) or not row.get("name"):
                    raise DataError(f"{path.name} member {member.name}: a name must follow its picture")
                yield picture[1], name_answer(family, str(row["name"]))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the data pack with --data or MUSESPARK_DATA") from None
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from None


def name_answer(family: str, name: str) -> str:
    """The answer to "what is this?", in the words that training uses."""
    sentences = {
        "emoji": "Emoji: {}.",
        "icons": "Icon: {}.",
        "flags": "The flag of {}.",
        "clothing": "A photo of {}.",
    }
    return sentences.get(family, "{}.").format(name.strip())


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every line of a `.jsonl.zst`."""
    try:
        with path.open("rb") as file:
            reader = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n")
            for number, line in enumerate(reader, start=1):
                where = f"{path.name} line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where} is not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise DataError(f"{where} must be a JSON object")
                yield where, row
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give the data pack with --data or MUSESPARK_DATA") from None
    except (OSError, UnicodeDecodeError, zstandard.ZstdError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
