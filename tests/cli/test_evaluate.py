"""`musespark eval` on a small checkpoint and a small data pack, from the command line to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from musespark.api.settings import Settings
from musespark.cli.evaluate import run_eval
from musespark.errors import DataError
from musespark.evals.task import Source
from tests.training.pack import write_rows


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    pairs = [
        {
            "id": f"agreement-{i}",
            "good": f"The {a} is here.",
            "bad": f"The {a} are here.",
            "uid": a,
            "field": "morphology",
        }
        for i, a in enumerate(("cat", "dog", "house"))
    ]
    write_rows(folder / "bench" / "blimp.jsonl.zst", pairs)
    return folder


def evaluate(
    pack: Path, out: Path, tasks: str, capsys: pytest.CaptureFixture[str], **options: object
) -> dict[str, dict[str, float]]:
    defaults: dict[str, object] = {"against": None, "again": False, "as_json": True}
    run_eval(Settings(threads=1), tasks, Source(pack, limit=3), out, **(defaults | options))  # type: ignore[arg-type]
    return {row["task"]: row for row in json.loads(capsys.readouterr().out)["results"]}


def test_the_bundled_model_scores_sentences_and_answers_questions(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = evaluate(pack, tmp_path, "blimp,arithmetic_easy", capsys)
    assert rows["blimp"]["chance"] == 0.5
    assert 0 <= rows["blimp"]["score"] <= 1
    assert rows["arithmetic_easy"]["items"] == 3
    said = [json.loads(line)["details"] for line in (tmp_path / "arithmetic_easy.jsonl").read_text().splitlines()[1:]]
    assert all(detail["said"] for detail in said)


def test_what_has_a_result_is_not_run_again_and_a_model_equals_itself(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate(pack, tmp_path, "blimp", capsys)
    written = (tmp_path / "blimp.jsonl").stat().st_mtime_ns
    second = evaluate(pack, tmp_path, "blimp", capsys, against=tmp_path)
    assert (tmp_path / "blimp.jsonl").stat().st_mtime_ns == written
    assert second["blimp"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "items": 3}
    assert second["blimp"]["score"] == first["blimp"]["score"]


def test_the_table_shows_per_cent_beside_the_baselines(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_eval(Settings(threads=1), "blimp", Source(pack), tmp_path, against=None, again=False, as_json=False)
    shown = capsys.readouterr().out
    assert "50.0 %" in shown
    assert "muse-spark-nano" in shown


def test_without_data_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the data pack with --data"):
        run_eval(Settings(), "blimp", Source(tmp_path), tmp_path, against=None, again=False, as_json=False)
