"""`musespark conformance` as a person uses it: real processes, what they print, and how they end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from musespark.conformance.recipes import all_recipes
from musespark.conformance.spoken import all_spoken
from musespark.conformance.suite import Suite, read_answer, write_answer

MUSESPARK = Path(sys.executable).with_name("musespark")
DOCS = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def conformance(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [MUSESPARK, "conformance", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_check_prints_a_table_and_ends_with_0_if_nothing_fails(suite: Suite) -> None:
    done = conformance("check", suite.folder, "--engine", "native", "--only", "muse_spark.attention")
    assert done.returncode == 0, done.stderr
    assert re.search(r"muse_spark\.attention\.window +pass +\S+ +0\.0003 +position \d+, token \d+", done.stdout)
    assert done.stdout.endswith("2 pass, 0 fail, 0 unsupported\n")


def test_a_failed_case_is_shown_with_what_it_guards_against_and_ends_with_1(suite: Suite, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    assert conformance("answer", suite.folder, answers, "--only", "muse_spark.parse").returncode == 0
    path = answers / "muse_spark.parse.types.json"
    content = read_answer(path)
    content["tool_calls"][0]["arguments"]["city"] = 123
    write_answer(path, content)
    done = conformance("check", suite.folder, "--answers", answers, "--only", "muse_spark.parse")
    assert done.returncode == 1
    assert "fails an engine that decodes strings that look like JSON" in done.stdout
    assert done.stdout.endswith("11 pass, 1 fail, 0 unsupported\n")
    as_json = json.loads(conformance("check", suite.folder, "--answers", answers, "--json").stdout)
    assert (as_json["pass"], as_json["fail"]) == (11, 1)
    assert as_json["unsupported"] == len(suite.cases) - 12
    (failed,) = [case for case in as_json["cases"] if case["status"] == "fail"]
    assert (failed["id"], failed["where"]) == ("muse_spark.parse.types", "tool_calls")


def test_nothing_passed_is_no_success(suite: Suite) -> None:
    done = conformance("check", suite.folder, "--engine", "transformers", "--only", "llama4.grids")
    assert done.returncode == 1
    assert done.stdout.endswith("0 pass, 0 fail, 1 unsupported\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "SUITE"], "either --engine or --answers"),
        (["check", "SUITE", "--engine", "native", "--answers", "x"], "either --engine or --answers"),
        (["check", "/nonexistent", "--engine", "native"], "holds no manifest.json"),
        (["check", "SUITE", "--answers", "/nonexistent"], "/nonexistent is not a folder"),
        (["check", "SUITE", "--engine", "native", "--only", "gpt"], "no case begins with 'gpt'"),
        (["check", "SUITE", "--engine", "vllm"], "--engine"),
    ],
)
def test_what_can_not_be_done_is_said_in_words(suite: Suite, arguments: list[str], sentence: str) -> None:
    done = conformance(*(str(suite.folder) if argument == "SUITE" else argument for argument in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert sentence in done.stderr


def test_the_documentation_lists_every_case_with_every_mistake_that_it_finds(suite: Suite) -> None:
    """The tables of docs/conformance.md are those of the suite of seed 0, without the measured numbers."""
    rows = dict(re.findall(r"^\| `([a-z0-9_.-]+)` \| [^|]+ \| ([^|]+) \|$", DOCS, flags=re.MULTILINE))
    expected = {case.id: "; ".join(guard.mistake for guard in case.guards) for case in suite.cases}
    assert {case_id: rows.get(case_id) for case_id in expected} == expected
    assert len(all_recipes()) == len(suite.manifest["checkpoints"])
    assert {spoken.id for spoken in all_spoken()} <= set(expected)
