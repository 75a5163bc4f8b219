from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from musespark.errors import ConfigError, DataError
from musespark.model.config import ModelConfig
from musespark.model.presets import PRESETS
from musespark.training.recipe import LARGEST_VOCABULARY, ChatData
from musespark.training.sources import open_source
from tests.training.pack import toy_recipe


def toy(**changes: Any) -> ModelConfig:
    data: Mapping[str, Any] = PRESETS["toy"]
    return ModelConfig.from_dict({**data, "text_config": {**data["text_config"], **changes}})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"warmup_steps": 0}, "warmup_steps is 0"),
        ({"rows_per_step": 3, "rows_per_forward": 2}, "must be a multiple"),
        ({"phases": ()}, "at least one phase"),
        ({"config": toy(vocab_size=LARGEST_VOCABULARY + 1)}, "16-bit ids"),
        ({"config": toy(mlp_layer_types=["dense", "sparse"])}, "no dense layers"),
    ],
)
def test_a_recipe_that_can_not_run_is_refused_before_it_starts(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(toy_recipe(tmp_path), **changes)


def test_the_largest_vocabulary_and_one_step_of_warm_up_are_allowed(tmp_path: Path) -> None:
    replace(toy_recipe(tmp_path), warmup_steps=1, config=toy(vocab_size=LARGEST_VOCABULARY))


def test_a_builder_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    recipe = replace(recipe, sources={**recipe.sources, "jokes": ChatData("jokes")})
    with pytest.raises(DataError, match="no builder 'jokes'"):
        open_source("jokes", recipe, tmp_path, tmp_path / "run")
