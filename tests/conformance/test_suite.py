"""A suite as a folder: whole or refused, with the file and the field that is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musespark.conformance.check import check, chosen
from musespark.conformance.engines import ReferenceEngine
from musespark.conformance.suite import Suite, open_suite
from musespark.conformance.write import write_suite
from musespark.errors import DataError
from musespark.model.checkpoint import open_checkpoint


@pytest.fixture
def copy(suite: Suite, tmp_path: Path) -> Path:
    return Path(shutil.copytree(suite.folder, tmp_path / "suite"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_a_suite_is_small_and_holds_nothing_but_json_and_safetensors(suite: Suite) -> None:
    files = [path for path in suite.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert {path.relative_to(suite.folder).as_posix() for path in files} == {*suite.manifest["files"], "manifest.json"}


def test_every_family_has_checkpoints_in_hugging_face_layout_and_every_kind_of_case(suite: Suite) -> None:
    for family in ("muse_spark", "muse_glimmer", "llama4"):
        cases = [case for case in suite.cases if case.family == family]
        assert {case.kind for case in cases} == {"logits", "render", "parse", "patches", "grids"}
        checkpoints = {suite.checkpoint(case) for case in cases if case.checkpoint}
        assert len(checkpoints) >= 3
        for folder in checkpoints:
            assert open_checkpoint(folder).config.model_type == family


def test_every_case_names_a_mistake_that_it_finds_and_measured_ones_show_beyond_the_tolerance(suite: Suite) -> None:
    for case in suite.cases:
        assert case.guards or case.kind == "patches", case.id
        assert all(guard.moves is None or guard.moves > 3 * case.tolerance for guard in case.guards), case.id
    assert len({guard.mistake for case in suite.cases for guard in case.guards}) > 100


def test_patches_find_another_filter_another_order_and_transparency_dropped(suite: Suite) -> None:
    said = {case.id: " ".join(g.mistake for g in case.guards) for case in suite.cases if case.kind == "patches"}
    assert "bicubic" in said["muse_spark.patches.wide"]
    assert "bicubic" in said["llama4.patches.landscape"]
    assert "stretches" in said["llama4.patches.portrait"]
    for family in ("muse_spark", "muse_glimmer", "llama4"):
        assert "transparency" in said[f"{family}.patches.clear"]
        assert "blue" in said[f"{family}.patches.small"]
        assert "channel" in said[f"{family}.patches.small"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(format="other"), "format is 'other'"),
        (lambda m: m.update(format_version=2), "format_version is 2; this program reads version 1"),
        (lambda m: m.pop("files"), "files must be an object"),
        (lambda m: m["files"].update({"../x": {"sha256": ""}}), "files lists '../x'"),
        (lambda m: m["files"].update({"/etc/passwd": {"sha256": ""}}), "files lists '/etc/passwd'"),
        (lambda m: m["files"].update(x=1), "files['x'] must be an object with a sha256"),
        (lambda m: m["files"].update(x={"sha256": "0"}), "x is missing"),
        (lambda m: m.update(cases=[]), "cases must be a list"),
        (lambda m: m["cases"].append(3), "must be an object"),
        (lambda m: m["cases"].append(m["cases"][0]), "two cases have the id 'muse_spark.attention.window'"),
        (lambda m: m["cases"][2].update(id="../../x"), "cases[2].id is '../../x'"),
        (lambda m: m["cases"][2].update(kind="guess"), "cases[2].kind is 'guess'"),
        (lambda m: m["cases"][2].update(family="gpt"), "cases[2].family is 'gpt'"),
        (lambda m: m["cases"][2].pop("about"), "cases[2].about is None"),
        (lambda m: m["cases"][2].update(tolerance=-1), "cases[2].tolerance is -1"),
        (lambda m: m["cases"][2].update(tolerance=float("nan")), "cases[2].tolerance is nan"),
        (lambda m: m["cases"][2].update(tolerance="much"), "cases[2].tolerance is 'much'"),
        (lambda m: m["cases"][2].update(checkpoint="../x"), "cases[2].checkpoint is '../x'"),
        (lambda m: m["cases"][2].pop("checkpoint"), "cases[2].checkpoint is None"),
        (
            lambda m: m["cases"][2].update(checkpoint="muse_spark.none"),
            "files does not list checkpoints/muse_spark.none",
        ),
        (lambda m: m["cases"][2].update(guards=["x"]), "cases[2].guards must be a list"),
        (lambda m: m["cases"][2].update(basis="rumour"), "cases[2].basis is 'rumour'"),
        (lambda m: m["cases"][2].update(colour="red"), "cases[2] has an unknown field 'colour'"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_field(
    copy: Path, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    edit(copy, change)
    with pytest.raises(DataError) as caught:
        open_suite(copy)
    assert sentence in str(caught.value)


def test_a_damaged_and_a_missing_file_are_named(copy: Path) -> None:
    path = copy / "expected" / "llama4.scout.layers.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"llama4\.scout\.layers\.safetensors is damaged"):
        open_suite(copy)
    path.unlink()
    with pytest.raises(DataError, match=r"llama4\.scout\.layers\.safetensors is missing"):
        open_suite(copy)


def test_a_file_without_a_field_is_named_with_the_field(copy: Path) -> None:
    """A suite that somebody else wrote, with checksums that are right."""
    name = "cases/muse_spark.parse.answer.json"
    (copy / name).write_text("{}", encoding="utf-8")
    edit(copy, lambda m: m["files"].update({name: {"sha256": hashlib.sha256(b"{}").hexdigest()}}))
    (result,) = check(open_suite(copy), ReferenceEngine(), only="muse_spark.parse.answer")
    assert result.status == "fail"
    assert result.note.endswith("muse_spark.parse.answer.json: token_ids is missing")


def test_no_suite_and_no_such_case_are_said(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        open_suite(tmp_path)
    (tmp_path / "manifest.json").write_text("[", encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.json can't be read as JSON"):
        open_suite(tmp_path)
    with pytest.raises(DataError, match="no case begins with 'gpt'"):
        chosen(suite, "gpt")


def test_a_folder_that_is_no_suite_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is not a suite"):
        write_suite(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(DataError, match="it must be from 0 to 4294967295"):
        write_suite(tmp_path / "suite", seed=seed)


def test_a_failed_writing_leaves_the_old_suite(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("musespark.conformance.write.write_answer", full)
    with pytest.raises(DataError, match="can't be written: No space left on device"):
        write_suite(copy)
    open_suite(copy)
    assert [path.name for path in copy.parent.iterdir()] == ["suite"]
