from pathlib import Path

import pytest

from musespark.errors import ConfigError, DataError
from musespark.training import progress as progress_module
from musespark.training.progress import Progress
from musespark.training.recipe import Phase, Recipe, load_recipe
from tests.training.pack import toy_recipe

PHASES = (
    Phase("stable", 6, {"stories": 1}),
    Phase("decay", 3, {"stories": 1}, 1.0, 0.1),
    Phase("chat", 1, {"stories": 1}, 0.1, 0.0),
)


def run_to_the_end(recipe: Recipe, seconds: float = 1.0) -> tuple[list[str], list[float]]:
    progress = Progress.begin(recipe)
    names, scales = [], []
    while not progress.done(recipe):
        names.append(recipe.phases[progress.phase].name)
        scales.append(progress.lr_scale(recipe))
        progress.advance(recipe, seconds=seconds)
    return names, scales


def test_without_a_time_limit_every_phase_takes_its_steps(tmp_path: Path) -> None:
    names, scales = run_to_the_end(toy_recipe(tmp_path, phases=PHASES, warmup_steps=2))
    assert names == ["stable"] * 6 + ["decay"] * 3 + ["chat"]
    assert scales == pytest.approx([0.5, 1, 1, 1, 1, 1, 1.0, 0.7, 0.4, 0.1])


@pytest.mark.parametrize("step_s", [0.5, 2.0])
def test_with_a_time_limit_steps_are_shares_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    recipe = toy_recipe(
        tmp_path,
        phases=(
            Phase("stable", 600, {"stories": 1}),
            Phase("decay", 300, {"stories": 1}, 1.0, 0.1),
            Phase("chat", 100, {"stories": 1}, 0.1, 0.0),
        ),
        time_limit_s=100.0,
    )
    clock = [1000.0]
    monkeypatch.setattr(progress_module.time, "time", lambda: clock[0])
    progress = Progress.begin(recipe)
    ends = []
    while not progress.done(recipe):
        clock[0] += step_s
        if progress.advance(recipe, seconds=step_s):
            ends.append(clock[0] - 1000.0)
    assert ends == pytest.approx([60, 90, 100], abs=2 * step_s)


def test_a_phase_of_vision_keeps_its_steps_whatever_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(
        tmp_path,
        phases=(
            Phase("text", 600, {"stories": 1}),
            Phase("vision", 40, {"pictures": 1}, 4.0, 0.5, trains="vision"),
            Phase("both", 300, {"stories": 1}),
            Phase("decay", 100, {"stories": 1}, 1.0, 0.1),
        ),
        time_limit_s=100.0,
    )
    clock = [1000.0]
    monkeypatch.setattr(progress_module.time, "time", lambda: clock[0])
    progress = Progress.begin(recipe)
    ends = []
    while not progress.done(recipe):
        step_s = 0.1 if recipe.phases[progress.phase].trains == "vision" else 0.5
        clock[0] += step_s
        if progress.advance(recipe, seconds=step_s):
            ends.append(clock[0] - 1000.0)
    assert progress.finished[1] == 40
    assert ends == pytest.approx([60, 64, 90, 100], abs=1.0)


def test_a_recipe_that_mixes_an_unknown_source_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'books'"):
        toy_recipe(tmp_path, phases=(Phase("p", 1, {"books": 1}),))


def test_rows_per_step_must_be_whole_forwards(tmp_path: Path) -> None:
    toy_recipe(tmp_path, rows_per_step=4, rows_per_forward=4)
    with pytest.raises(ConfigError, match="multiple of rows_per_forward 3"):
        toy_recipe(tmp_path, rows_per_step=4, rows_per_forward=3)


def test_a_phase_needs_a_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one step"):
        toy_recipe(tmp_path, phases=(Phase("p", 0, {"stories": 1}),))


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a recipe"):
        load_recipe(tmp_path / "none.py")
    (tmp_path / "wrong.py").write_text("def recipe():\n    return 5\n")
    with pytest.raises(DataError, match="returned int"):
        load_recipe(tmp_path / "wrong.py")


def test_the_recipe_of_the_bundled_model_loads() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "runs" / "nano.py")
    assert recipe.config.text.vocab_size == 16_384
