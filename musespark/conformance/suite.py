"""A suite as a folder, and one case of it: what goes in, what must come out, how near, and which mistakes it finds.

    manifest.json                      what is here, with the SHA-256 of every file
    checkpoints/NAME/                  Hugging Face layout, float32
    cases/ID.json or ID.safetensors    what goes in
    expected/ID.json or ID.safetensors what must come out; answers of an engine have the same names and fields

Reading checks everything before anything is used: a damaged suite is a DataError that names the file and the field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from musespark.errors import CheckpointError, DataError
from musespark.model.json_file import read_json_object, show
from musespark.model.tensor_file import RawTensor, TensorFile, write_tensors

FORMAT = "musespark-conformance"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 16 << 20

Kind = Literal["logits", "render", "parse", "patches", "grids"]
Family = Literal["muse_spark", "muse_glimmer", "llama4"]
TENSOR_KINDS = ("logits", "patches")  # the others are JSON
# The fields that each kind of case has at the least.
GIVEN: dict[Kind, tuple[str, ...]] = {
    "logits": ("token_ids", "positions"),
    "render": ("messages", "today"),
    "parse": ("token_ids", "tools"),
    "patches": ("picture", "rows"),
    "grids": ("sizes",),
}
EXPECTED: dict[Kind, tuple[str, ...]] = {
    "logits": ("logits",),
    "render": ("token_ids",),
    "parse": ("reasoning", "content", "tool_calls"),
    "patches": ("patches", "num_patches", "grid"),
    "grids": ("grids", "num_tokens"),
}
Arrays = dict[str, np.ndarray]
Answer = dict[str, Any]  # of a tensor kind, name -> array; else a JSON object

_ID = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9-]+)+")


@dataclass(frozen=True, slots=True)
class Guard:
    """An engine that `mistake` is up to `moves` away from what is expected; None where that is no number."""

    mistake: str
    moves: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """`tolerance` is the largest absolute difference of a value that passes; 0 means equal.

    basis: "published" where a publisher's code or file says so, "musespark" where ours had to be chosen, because what
    was published does not say.
    """

    id: str
    kind: Kind
    family: Family
    about: str
    guards: tuple[Guard, ...]
    tolerance: float = 0.0
    checkpoint: str | None = None
    basis: Literal["published", "musespark"] = "published"

    @property
    def file_name(self) -> str:
        return f"{self.id}.safetensors" if self.kind in TENSOR_KINDS else f"{self.id}.json"

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


class Suite:
    """An opened folder; made by `open_suite`."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], cases: tuple[Case, ...]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.cases = cases

    def checkpoint(self, case: Case) -> Path:
        assert case.checkpoint is not None, f"{case.id} has no checkpoint"
        return self.folder / "checkpoints" / case.checkpoint

    def given(self, case: Case) -> Answer:
        return self._read("cases", case, GIVEN[case.kind])

    def expected(self, case: Case) -> Answer:
        return self._read("expected", case, EXPECTED[case.kind])

    def _read(self, part: str, case: Case, names: tuple[str, ...]) -> Answer:
        path = self.folder / part / case.file_name
        content = read_answer(path)
        if absent := [name for name in names if name not in content]:
            raise DataError(f"{path}: {absent[0]} is missing")
        return content

    def tokenizer(self, family: Family) -> Path:
        return self.folder / "tokenizers" / family / "tokenizer.json"

    def pictures(self) -> Arrays:
        """Name -> (height, width, 3 or 4) uint8."""
        return read_answer(self.folder / "pictures.safetensors")


def read_answer(path: Path) -> Answer:
    """The arrays of a safetensors file, or the object in a JSON file. Raises DataError naming the file."""
    if not path.is_file():
        raise DataError(f"{path} is missing")
    try:
        if path.suffix == ".json":
            return read_json_object(path, MAX_JSON_BYTES)
        file = TensorFile(path)
        return {name: file.tensor(name).data for name in file.entries}
    except CheckpointError as error:
        raise DataError(f"{path}: {error}") from None
    except ValueError as error:
        raise DataError(f"{path} can't be read as JSON: {error}") from None


def write_answer(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON object, or arrays as safetensors, by the name of the file."""
    if path.suffix == ".json":
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return
    raw = {name: RawTensor.from_array(array) for name, array in content.items()}
    write_tensors(path, {name: (tensor.dtype, tensor.shape) for name, tensor in raw.items()}, lambda name: raw[name])


def open_suite(folder: Path) -> Suite:
    """Read the manifest and check that every file is there and is what it was when it was written.

    Raises DataError naming the file and the field.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no {MANIFEST}; `musespark conformance write {folder}` makes a suite")
    manifest = read_answer(path)
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path}: format is {show(manifest.get('format'))}, expected {FORMAT!r}")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = show(manifest.get("format_version"))
        raise DataError(f"{path}: format_version is {version}; this program reads version {FORMAT_VERSION}")
    files = _object(manifest, "files", path)
    for name, entry in files.items():
        _check_file(Path(folder), name, entry, path)
    entries = manifest.get("cases")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: cases must be a list that is not empty")
    cases = tuple(_case(entry, i, path) for i, entry in enumerate(entries))
    ids = [case.id for case in cases]
    if twice := next((i for i in ids if ids.count(i) > 1), None):
        raise DataError(f"{path}: two cases have the id {twice!r}")
    needed = [f"{part}/{case.file_name}" for case in cases for part in ("cases", "expected")]
    needed += [f"checkpoints/{case.checkpoint}/config.json" for case in cases if case.checkpoint]
    if absent := [name for name in needed if name not in files]:
        raise DataError(f"{path}: files does not list {absent[0]}, which a case needs")
    return Suite(Path(folder), manifest, cases)


def _check_file(folder: Path, name: str, entry: Any, path: Path) -> None:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\\" in name or not parts:
        raise DataError(f"{path}: files lists {show(name)}; it must be a path inside the folder")
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise DataError(f"{path}: files[{show(name)}] must be an object with a sha256")
    if not (folder / name).is_file():
        raise DataError(f"{folder / name} is missing, but {MANIFEST} lists it")
    if sha256(folder / name) != entry["sha256"]:
        raise DataError(f"{folder / name} is damaged: its SHA-256 is not the one in {MANIFEST}; write the suite again")


def _case(entry: Any, index: int, path: Path) -> Case:
    where = f"{path}: cases[{index}]"
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object")
    known = {field.name for field in fields(Case)}
    if strange := sorted(set(entry) - known):
        raise DataError(f"{where} has an unknown field {show(strange[0])}")
    for name in ("id", "about"):
        if not isinstance(entry.get(name), str):
            raise DataError(f"{where}.{name} is {show(entry.get(name))}; it must be a text")
    if not _ID.fullmatch(entry["id"]):
        raise DataError(f"{where}.id is {show(entry['id'])}; it must look like family.name")
    for name, allowed in (("kind", get_args(Kind)), ("family", get_args(Family))):
        if entry.get(name) not in allowed:
            raise DataError(f"{where}.{name} is {show(entry.get(name))}; it must be one of {', '.join(allowed)}")
    if entry.get("basis", "published") not in ("published", "musespark"):
        raise DataError(f"{where}.basis is {show(entry['basis'])}; it must be published or musespark")
    tolerance = entry.get("tolerance", 0.0)
    if type(tolerance) not in (int, float) or not 0 <= tolerance < 1e6:
        raise DataError(f"{where}.tolerance is {show(tolerance)}; it must be a number from 0")
    checkpoint = entry.get("checkpoint")
    if (entry["kind"] == "logits") != isinstance(checkpoint, str) or (checkpoint and not _ID.fullmatch(checkpoint)):
        raise DataError(f"{where}.checkpoint is {show(checkpoint)}; a case of logits, and no other, names one")
    guards = entry.get("guards")
    if not isinstance(guards, list) or not all(_is_guard(guard) for guard in guards):
        raise DataError(f"{where}.guards must be a list of objects with mistake and moves")
    return Case(**entry | {"guards": tuple(Guard(**guard) for guard in guards)})


def _is_guard(guard: Any) -> bool:
    return (
        isinstance(guard, dict)
        and set(guard) <= {"mistake", "moves"}
        and isinstance(guard.get("mistake"), str)
        and isinstance(guard.get("moves"), int | float | None)
    )


def _object(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value := data.get(name), dict):
        raise DataError(f"{path}: {name} must be an object")
    return value


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
