from pathlib import Path

import pytest

from musespark.errors import DataError
from musespark.training.shards import read_images, read_rows, read_texts
from tests.training.pack import png, write_rows, write_tar


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    rows = [{"text": "a\nb"}, {"text": "ü\u2028c"}]  # a line separator inside a string does not end the row
    assert list(read_rows(write_rows(tmp_path / "x.jsonl.zst", rows))) == rows


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("not json", "line 2 is not JSON"),
        ("[1]", "line 2 must be a JSON object"),
        ({"txt": "a"}, "line 2: `text` must be a string"),
        ({"text": ""}, "line 2: `text` must be a string that is not empty"),
        ({"text": 5}, "line 2: `text` must be a string"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, row: object, problem: str) -> None:
    path = write_rows(tmp_path / "bad.jsonl.zst", [{"text": "fine"}, row])  # type: ignore[list-item]
    with pytest.raises(DataError, match=rf"bad\.jsonl\.zst {problem}"):
        list(read_texts(path))


def test_a_missing_file_says_how_to_name_the_data_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MUSESPARK_DATA"):
        list(read_rows(tmp_path / "none.jsonl.zst"))
    with pytest.raises(DataError, match="MUSESPARK_DATA"):
        list(read_images(tmp_path / "none.tar"))


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "cut.jsonl.zst", [{"text": "word " * 50}] * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cut"):
        list(read_texts(path))


def test_pictures_come_with_their_descriptions(tmp_path: Path) -> None:
    members = [("000000.png", png((1, 2, 3))), ("000000.json", b'{"name": "a"}')]
    assert list(read_images(write_tar(tmp_path / "a.tar", members))) == [("000000", members[0][1], {"name": "a"})]


def test_a_description_without_its_picture_is_refused_by_name(tmp_path: Path) -> None:
    members = [("000000.png", png((1, 2, 3))), ("000001.json", b"{}")]
    with pytest.raises(DataError, match=r"a\.tar member 000001\.json"):
        list(read_images(write_tar(tmp_path / "a.tar", members)))
