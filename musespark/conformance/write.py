"""Writing a suite: every case made, its mistakes run through it, and the folder put in place in one step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from musespark.conformance import picture_cases
from musespark.conformance.logit_cases import build, make_case
from musespark.conformance.recipes import Recipe, all_recipes, byte_tokenizer
from musespark.conformance.spelling import read
from musespark.conformance.spoken import Spoken, all_spoken
from musespark.conformance.suite import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    Answer,
    Arrays,
    Case,
    Family,
    Guard,
    Kind,
    sha256,
    write_answer,
)
from musespark.errors import DataError
from musespark.model.checkpoint import save_checkpoint
from musespark.model.config import ModelConfig
from musespark.model.manifest import MANIFEST as SHA256SUMS

FAMILIES: tuple[Family, ...] = ("muse_spark", "muse_glimmer", "llama4")
MAX_SEED = 2**32


def write_suite(folder: Path, *, seed: int = 0, progress: Callable[[str], None] = lambda _: None) -> tuple[Case, ...]:
    """Write the suite of a seed into `folder`, whole or not at all; an older suite there is replaced.

    Raises DataError if the folder holds something else, can't be written, or if a mistake of this seed does not show.
    """
    folder = Path(folder)
    if not 0 <= seed < MAX_SEED:
        raise DataError(f"the seed is {seed}; it must be from 0 to {MAX_SEED - 1}")
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))):
        raise DataError(f"{folder} exists and is not a suite (it has no {MANIFEST}); it is not overwritten")
    new = folder.absolute().with_name(f".{folder.absolute().name}.writing")
    try:
        shutil.rmtree(new, ignore_errors=True)
        for part in ("cases", "expected"):
            (new / part).mkdir(parents=True)
        cases = _write(new, seed, progress)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    except OSError as error:
        raise DataError(f"{folder} can't be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return cases


def _write(folder: Path, seed: int, progress: Callable[[str], None]) -> tuple[Case, ...]:
    cases: list[Case] = []

    def add(case: Case, given: Answer, expected: Answer) -> None:
        for part, content in (("cases", given), ("expected", expected)):
            write_answer(folder / part / case.file_name, content)
        cases.append(case)

    for family in FAMILIES:
        path = folder / "tokenizers" / family
        path.mkdir(parents=True)
        byte_tokenizer(family).save(path / "tokenizer.json")
    pictures = picture_cases.make_pictures(seed)
    write_answer(folder / "pictures.safetensors", pictures)
    checkpoints = {}
    for recipe in all_recipes():
        progress(recipe.name)
        config, weights, network = build(recipe, seed)
        _write_checkpoint(folder, recipe, config, weights)
        num_values = sum(values.size for values in weights.values())
        checkpoints[recipe.name] = {"family": recipe.family, "seed": seed, "num_values": num_values}
        for case in recipe.cases:
            add(*make_case(recipe, case, seed, network))
    progress("prompts and answers")
    for spoken in all_spoken():
        add(*_spoken_case(spoken, pictures))
    progress("pictures")
    for made in (*picture_cases.patch_cases(pictures), *picture_cases.grid_cases()):
        add(*made)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "written_by": {name: metadata.version(name) for name in ("musespark", "torch", "numpy", "pillow")},
        "checkpoints": checkpoints,
        "cases": [case.to_dict() for case in cases],
        "files": _files(folder),
    }
    write_answer(folder / MANIFEST, manifest)
    return tuple(cases)


def _write_checkpoint(folder: Path, recipe: Recipe, config: ModelConfig, weights: Arrays) -> None:
    path = folder / "checkpoints" / recipe.name
    save_checkpoint(
        path, config, weights, files={"tokenizer.json": folder / f"tokenizers/{recipe.family}/tokenizer.json"}
    )
    (path / SHA256SUMS).unlink()  # the suite's manifest has the sums of all files
    if recipe.as_published:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
        data["text_config"] |= recipe.as_published
        write_answer(path / "config.json", data)


def _spoken_case(spoken: Spoken, pictures: Arrays) -> tuple[Case, Answer, Answer]:
    """The case as it was written by hand; that our own chat room agrees is for a check to say, not for the writer."""
    tokenizer = byte_tokenizer(spoken.family)
    ids = {"token_ids": read(spoken.spelled, tokenizer), "spelled": spoken.spelled}
    kind: Kind = "parse" if spoken.says is not None else "render"
    guards = tuple(Guard(says) for says in spoken.guards)
    case = Case(spoken.id, kind, spoken.family, spoken.about, guards, basis=spoken.basis)
    if spoken.says is None:
        return case, spoken.given, ids
    return case, spoken.given | ids, spoken.says


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
