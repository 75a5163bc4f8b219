"""generation_config.json: what it may say, and what holds where it says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from musespark.errors import CheckpointError
from musespark.model.generation import GenerationDefaults
from tests.model.files import TOY


def test_without_a_file_the_end_id_of_the_config_holds(tmp_path: Path) -> None:
    assert GenerationDefaults.from_file(tmp_path / "generation_config.json", TOY) == GenerationDefaults((1,), 1.0, 1.0)


def test_transformers_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    ours = GenerationDefaults((1, 6), temperature=0.6, top_p=0.95)
    theirs = GenerationConfig.from_dict(ours.to_dict())
    assert (theirs.eos_token_id, theirs.do_sample, theirs.temperature, theirs.top_p) == ([1, 6], True, 0.6, 0.95)
    theirs.save_pretrained(tmp_path)
    assert GenerationDefaults.from_file(tmp_path / "generation_config.json", TOY) == ours


def test_missing_and_null_fields_have_their_defaults() -> None:
    data = {"eos_token_id": None, "temperature": None, "top_p": None, "top_k": 50}
    assert GenerationDefaults.from_dict({}, TOY) == GenerationDefaults.from_dict(data, TOY) == GenerationDefaults((1,))


def test_one_id_and_the_ends_of_the_ranges_are_accepted() -> None:
    assert GenerationDefaults.from_dict({"eos_token_id": 6}, TOY).eos_token_ids == (6,)
    for temperature, top_p in ((0, 1), (2.0, 1e-6)):
        read = GenerationDefaults.from_dict({"temperature": temperature, "top_p": top_p}, TOY)
        assert (read.temperature, read.top_p) == (temperature, top_p)


@pytest.mark.parametrize("eos", [[], "1", 1.0, True, -1, [1, -1], [[1]], 1 << 40])
def test_a_bad_end_id_is_refused(eos: Any) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id"):
        GenerationDefaults.from_dict({"eos_token_id": eos}, TOY)


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf"), 10**400, "1", True, [1]])
def test_a_bad_temperature_or_top_p_is_refused(value: Any) -> None:
    for name in ("temperature", "top_p"):
        with pytest.raises(CheckpointError, match=name):
            GenerationDefaults.from_dict({name: value}, TOY)
    with pytest.raises(CheckpointError, match="top_p is 0; it must be above 0"):
        GenerationDefaults.from_dict({"top_p": 0}, TOY)
