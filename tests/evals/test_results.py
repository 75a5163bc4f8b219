from collections.abc import Iterator
from pathlib import Path

import pytest

from musespark.errors import DataError
from musespark.evals.results import compare, read_result, read_results, result_path, table_row, write_result
from musespark.evals.task import Baselines, Outcome

FOUND = [Outcome("a", 1.0, "c", 2.0, {"said": "ä"}), Outcome("b", 0.0)]


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_result(tmp_path, "logic", "accuracy", "nano", Baselines(0.5, None), FOUND)
    result = read_result(result_path(tmp_path, "logic"))
    assert list(result.outcomes) == FOUND
    assert (result.task, result.model, result.baselines) == ("logic", "nano", Baselines(0.5, None))
    assert table_row(result)["score"] == pytest.approx(2 / 3)


def test_a_run_that_is_cut_leaves_no_result(tmp_path: Path) -> None:
    def cut() -> Iterator[Outcome]:
        yield FOUND[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path, "logic", "accuracy", "nano", Baselines(), cut())
    assert read_results(tmp_path) == {}


def test_only_tasks_of_both_are_compared(tmp_path: Path) -> None:
    for folder, tasks in (("one", ("logic", "charts")), ("two", ("logic",))):
        for task in tasks:
            write_result(tmp_path / folder, task, "accuracy", folder, Baselines(), FOUND)
    one, two = (list(read_results(tmp_path / folder).values()) for folder in ("one", "two"))
    assert {task: found.mean for task, found in compare(one, two).items()} == {"logic": 0.0}


@pytest.mark.parametrize("content", ["", "{}", '{"task": 1}\n{"id": "a"}', "not json"])
def test_another_file_is_no_result(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="is not a result of `musespark eval`"):
        read_result(path)
