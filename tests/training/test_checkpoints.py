from dataclasses import replace
from pathlib import Path

import pytest
import torch

from musespark.errors import CheckpointError
from musespark.training.checkpoints import STATE
from musespark.training.loop import Trainer
from tests.training.pack import toy_recipe


def test_a_run_without_a_state_begins_at_step_0(tmp_path: Path, pack: Path) -> None:
    trainer = Trainer(toy_recipe(tmp_path), data=pack, out=tmp_path / "run")
    trainer.restore()
    assert trainer.progress.total_steps == 0


def test_a_write_that_dies_half_way_keeps_the_old_state(
    tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(toy_recipe(tmp_path), data=pack, out=tmp_path / "run")
    trainer.progress.total_steps = 7
    trainer.save()

    def die_half_way(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die_half_way)
    trainer.progress.total_steps = 8
    with pytest.raises(KeyboardInterrupt):
        trainer.save()

    resumed = Trainer(trainer.recipe, data=pack, out=tmp_path / "run")
    resumed.restore()
    assert resumed.progress.total_steps == 7


def test_a_damaged_state_is_refused_by_name(tmp_path: Path, pack: Path) -> None:
    trainer = Trainer(toy_recipe(tmp_path), data=pack, out=tmp_path / "run")
    trainer.save()
    path = tmp_path / "run" / STATE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt can't be read"):
        trainer.restore()


def test_a_state_of_another_model_is_refused(tmp_path: Path, pack: Path) -> None:
    recipe = toy_recipe(tmp_path)
    Trainer(recipe, data=pack, out=tmp_path / "run").save()
    other = replace(recipe, config=replace(recipe.config, text=replace(recipe.config.text, sliding_window=64)))
    with pytest.raises(CheckpointError, match=r"made by another recipe: config text_config: .*64"):
        Trainer(other, data=pack, out=tmp_path / "run").restore()


def test_a_changed_recipe_is_refused_with_the_difference_and_how_often_to_save_is_no_change(
    tmp_path: Path, pack: Path
) -> None:
    recipe = toy_recipe(tmp_path)
    Trainer(recipe, data=pack, out=tmp_path / "run").save()
    Trainer(replace(recipe, save_every_s=1.0, time_limit_s=5.0), data=pack, out=tmp_path / "run").restore()
    with pytest.raises(CheckpointError, match=r"seed: 1 -> 2\. Take the changes back, or choose another --out"):
        Trainer(replace(recipe, seed=2), data=pack, out=tmp_path / "run").restore()
    longer = replace(recipe, phases=(replace(recipe.phases[0], steps=9), recipe.phases[1]))
    with pytest.raises(CheckpointError, match=r"phases: ….*steps=8.* -> ….*steps=9"):
        Trainer(longer, data=pack, out=tmp_path / "run").restore()


def test_a_file_that_is_no_state_of_a_run_is_refused_by_name(tmp_path: Path, pack: Path) -> None:
    trainer = Trainer(toy_recipe(tmp_path), data=pack, out=tmp_path / "run")
    trainer.out.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": torch.zeros(1)}, trainer.out / STATE)
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        trainer.restore()
