"""The engines that the command knows: what each passes, and what it honestly leaves."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from musespark.conformance.check import check, write_answers
from musespark.conformance.engines import NativeEngine, ReferenceEngine, TransformersEngine
from musespark.conformance.suite import Suite
from musespark.errors import ConfigError


def test_transformers_gives_the_expected_logits(suite: Suite) -> None:
    """The one outside source of these numbers. It refuses the integer 4 that early files hold."""
    results = [result for result in check(suite, TransformersEngine()) if result.case.kind == "logits"]
    refused = [result for result in results if result.status == "unsupported"]
    assert [result.case.id for result in refused] == ["llama4.early-file.temperature"]
    assert "attn_temperature_tuning" in refused[0].note
    assert [(r.case.id, r.difference) for r in results if r.status == "fail"] == []


def test_the_native_runner_passes_every_case_of_every_family(suite: Suite) -> None:
    results = list(check(suite, NativeEngine()))
    assert [(r.case.id, r.status, r.note) for r in results if r.status != "pass"] == []


def test_an_engine_that_refuses_a_checkpoint_is_unsupported_and_not_wrong(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("the native runner does not run this")

    monkeypatch.setattr("musespark.conformance.native_runs.run_in_pieces", refuse)
    results = list(check(suite, NativeEngine(), only="muse_spark.pages"))
    assert [(r.status, r.note) for r in results] == [("unsupported", "the native runner does not run this")]


def test_answers_are_checked_without_torch(suite: Suite, tmp_path: Path) -> None:
    """The author of another engine need not install it."""
    write_answers(suite, ReferenceEngine(), tmp_path / "answers")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from musespark.conformance.check import check\n"
        "from musespark.conformance.engines import AnswersEngine, NativeEngine\n"
        "from musespark.conformance.suite import open_suite\n"
        "suite = open_suite(Path(sys.argv[1]))\n"
        "for engine in (AnswersEngine(Path(sys.argv[2]), suite), NativeEngine()):\n"
        "    print(*(result.status for result in check(suite, engine)))\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(suite.folder), str(tmp_path / "answers")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    from_files, native = (Counter(line.split()) for line in done.stdout.splitlines())
    assert from_files == {"pass": len(suite.cases)}
    assert native == {"pass": len(suite.cases)}
