import io
import json
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from musespark.chat.messages import Image, Message, Text
from musespark.errors import DataError
from musespark.evals.naming import PictureNames, blank_picture, name_log_probs
from musespark.evals.task import Source
from musespark.model.network import MuseSpark
from musespark.model.presets import preset
from tests.evals.reference_scorer import ReferenceScorer
from tests.training.pack import write_tar


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    PillowImage.new("RGB", (28, 28), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def scorer() -> ReferenceScorer:
    network = MuseSpark(preset("toy"))
    network.init_weights(seed=0)
    return ReferenceScorer(network.eval())


def task(folder: Path, names: list[str], family: str = "grocery") -> PictureNames:
    members = []
    for i, name in enumerate(names):
        members += [(f"{i:06}.png", picture(5 * i)), (f"{i:06}.json", json.dumps({"name": name}).encode())]
    write_tar(folder / "images" / f"valid-{family}.tar", members)
    return PictureNames(family, Source(folder))


def script(monkeypatch: pytest.MonkeyPatch, score: object) -> None:
    """Names are scored by `score(shade of the picture or None if blank, name)`."""

    def scripted(_: object, data: bytes, names: list[str]) -> tuple[list[float], tuple[int, int]]:
        shade = PillowImage.open(io.BytesIO(data)).convert("L").getpixel((0, 0))
        return [score(None if shade == 255 else shade, name) for name in names], (2, 2)  # type: ignore[operator]

    monkeypatch.setattr("musespark.evals.naming.name_log_probs", scripted)


def test_an_untrained_network_names_by_chance(tmp_path: Path, scorer: ReferenceScorer) -> None:
    names = task(tmp_path, [f"name {i}" for i in range(40)])
    values = [outcome.value for outcome in names.run(scorer)]
    assert names.baselines().chance == 0.125
    assert abs(sum(values) / 40 - 0.125) < 0.2


def test_a_name_that_is_likely_without_any_picture_gains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: ReferenceScorer
) -> None:
    names = [f"name {i}" for i in range(9)]
    script(
        monkeypatch,
        lambda shade, name: (name == "name 8.") * 9.0 + (shade is not None and name == f"name {shade // 5}."),
    )
    values = [outcome.value for outcome in task(tmp_path, names).run(scorer)]
    assert sorted(values) == [1.0] * 9


@pytest.mark.parametrize(("rank", "expected"), [(0, 1.0), (1, 8 / 36), (2, 1 / 36), (3, 0.0)])
def test_a_name_that_few_beat_is_right_as_often_as_drawing_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: ReferenceScorer, rank: int, expected: float
) -> None:
    """`rank` of nine other names gain more than the own; seven of the nine are drawn: C(9 - rank, 7) / C(9, 7)."""
    names = [f"name {i}" for i in range(10)]
    script(monkeypatch, lambda shade, name: 0.0 if shade is None else -float(name.removeprefix("name ").rstrip(".")))
    found = {outcome.details["name"]: outcome.value for outcome in task(tmp_path, names).run(scorer)}
    assert found[f"name {rank}."] == pytest.approx(expected)


def test_seven_names_leave_a_choice_of_seven(tmp_path: Path) -> None:
    assert task(tmp_path, [f"coat {i}" for i in range(7)]).baselines().chance == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("family", "answer"), [("emoji", "Emoji: a cat."), ("icons", "Icon: a cat."), ("clothing", "A photo of a cat.")]
)
def test_names_are_asked_for_in_the_words_of_training(tmp_path: Path, family: str, answer: str) -> None:
    assert task(tmp_path, ["a cat"], family).pictures[0].name == answer


def test_a_blank_picture_has_the_grid_that_was_asked_for(scorer: ReferenceScorer) -> None:
    prompt = scorer.render([Message("user", (Image(blank_picture((2, 4))), Text("?")))])
    assert prompt.images[0].grid == (2, 4)
    assert (prompt.images[0].patches == 1).all()


def test_answers_are_scored_alone_and_together_alike(scorer: ReferenceScorer) -> None:
    together, _ = name_log_probs(scorer, picture(10), ["a", "a longer one"])
    alone = [name_log_probs(scorer, picture(10), [name])[0][0] for name in ("a", "a longer one")]
    assert together == pytest.approx(alone, abs=1e-3)
    assert together[1] < together[0] < 0


def test_a_picture_without_a_name_is_told(tmp_path: Path) -> None:
    members = [("000000.png", picture(1)), ("000000.json", b'{"text": "no name"}')]
    write_tar(tmp_path / "images" / "valid-emoji.tar", members)
    with pytest.raises(DataError, match=r"valid-emoji\.tar member 000000\.json"):
        PictureNames("emoji", Source(tmp_path))
