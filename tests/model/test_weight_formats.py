"""Declarations of a weight format, whatever a stranger wrote into them: read, or refused with a CheckpointError."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musespark.errors import CheckpointError
from musespark.model.pack_quantized import Quantization
from musespark.model.weight_formats import read_weight_format
from tests.model.test_fp8_formats import CHANNEL, FBGEMM
from tests.model.test_nvfp4_format import IN_CONFIG

DECLARATIONS: tuple[dict[str, Any], ...] = (Quantization(4, 32).to_dict(["lm_head"]), CHANNEL, FBGEMM, IN_CONFIG)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inside for place in ((value, key), *places(item))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_a_changed_field_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    config = {"quantization_config": copy.deepcopy(data.draw(st.sampled_from(DECLARATIONS)))}
    holder, key = data.draw(st.sampled_from(places(config)))
    holder[key] = data.draw(JSON)
    with contextlib.suppress(CheckpointError):  # and no other error
        read_weight_format(tmp_path, config)


def test_all_of_them_are_read_as_they_are(tmp_path: Path) -> None:
    kinds = [read_weight_format(tmp_path, {"quantization_config": config}) for config in DECLARATIONS]
    assert [str(kind) for kind in kinds] == ["4 bits", "FP8", "FP8", "NVFP4"]
    assert read_weight_format(tmp_path, {}) is None


def test_what_a_stranger_wrote_is_shown_short_and_in_ascii(tmp_path: Path) -> None:
    for config in (
        {"quant_method": "\x1b[31m" * 10_000},
        {**CHANNEL, "format": "\x1b[31m" * 10_000},
        {**CHANNEL, "config_groups": {"\x1b" * 10_000: None}},
        {**CHANNEL, "ignore": "\x1b" * 10_000},
        {**CHANNEL, "ignore": ["re:" + "(\x1b)*" * 10_000]},
        {**IN_CONFIG, "group_size": "\x1b" * 10_000},
    ):
        with pytest.raises(CheckpointError) as caught:
            read_weight_format(tmp_path, {"quantization_config": config})
        assert len(str(caught.value)) < 400
        assert str(caught.value).isprintable()
