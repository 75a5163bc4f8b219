"""A data pack small enough to build in a test: the folders and fields of the real one."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from PIL import Image

from musespark.chat.tokenizer import Tokenizer
from musespark.model.presets import preset
from musespark.training.recipe import ChatData, Phase, Recipe, TextData

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 220)}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """A .jsonl.zst; a row that is a string is written as it stands."""
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(lines.encode()))
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def png(colour: tuple[int, int, int], size: tuple[int, int] = (56, 56)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_pack(folder: Path) -> Path:
    """Stories of a few repeating words, and three emoji that are one colour each."""
    rng = np.random.default_rng(0)
    words = ["the cat", "sat", "on", "a mat", "and", "a dog", "ran", "home"]
    stories = [{"text": " ".join(words[i] for i in rng.integers(0, 8, size=120)) + "."} for _ in range(40)]
    write_rows(folder / "text" / "stories-00.jsonl.zst", stories)
    members = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        description = {"text": f"Emoji: {name} square", "name": f"{name} square", "keywords": []}
        members.append((f"{number:06}.png", png(colour)))
        members.append((f"{number:06}.json", json.dumps(description).encode()))
    write_tar(folder / "images" / "emoji-000.tar", members)
    return folder


def toy_recipe(folder: Path, **changes: Any) -> Recipe:
    """A two-layer model on the tiny pack, in float32 and uncompiled: 12 steps of 4 rows of 128 bytes."""
    tokenizer = folder / "tokenizer.json"
    Tokenizer.bytes_only().save(tokenizer)
    fields: dict[str, Any] = {
        "name": "toy",
        "config": preset("toy"),
        "tokenizer": tokenizer,
        "sources": {"stories": TextData(("text/stories-00.jsonl.zst",)), "pictures": ChatData("pictures")},
        "phases": (Phase("pretrain", 8, {"stories": 3, "pictures": 1}), Phase("decay", 4, {"stories": 1}, 1.0, 0.1)),
        "sequence_length": 256,
        "rows_per_step": 4,
        "rows_per_forward": 2,
        "warmup_steps": 2,
        "precision": "float32",
    }
    return Recipe(**(fields | changes))
