"""Lists of modules that were not quantised: three dialects, and expressions that would never end."""

from __future__ import annotations

import time
from typing import Any

import pytest

from musespark.errors import CheckpointError
from musespark.model.kept_modules import KeptModules, Language

COMPRESSED: Language = "exact names and expressions"
SUBTREES: Language = "names of subtrees"
SHELL: Language = "shell patterns"
EXPERTS = "model.language_model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("language", "listed", "tensor", "held"),
    [
        (COMPRESSED, "lm_head", "lm_head.weight", True),
        (COMPRESSED, "lm_head", "language_model.lm_head.weight", False),
        (COMPRESSED, "model.layers.0", "model.layers.0.mlp.up_proj.weight", False),
        (COMPRESSED, "re:.*lm_head", "language_model.lm_head.weight", True),
        (COMPRESSED, "re:lm_head", "language_model.lm_head.weight", False),  # `re.match`: from the start
        (COMPRESSED, "re:.*mlp\\.gate$", "model.layers.0.mlp.gate_proj.weight", False),
        (COMPRESSED, "re:.*\\.experts$", EXPERTS, True),
        (COMPRESSED, EXPERTS, EXPERTS, True),
        (SUBTREES, "model.layers.1", "model.layers.1.mlp.up_proj.weight", True),
        (SUBTREES, "model.layers.1", "model.layers.10.mlp.up_proj.weight", False),
        (SUBTREES, "model.*", "model.norm.weight", False),
        (SHELL, "model.language_model.layers.0*", EXPERTS, True),
        (SHELL, "model.language_model.layers.0", EXPERTS, True),
        (SHELL, "model.language_model.layers.1*", EXPERTS, False),
        (SHELL, "*experts*", EXPERTS, True),
        (SHELL, "model.language_model.layers.[0-9].mlp.experts", EXPERTS, True),
    ],
)
def test_each_dialect_finds_its_modules(language: Language, listed: str, tensor: str, held: bool) -> None:
    assert KeptModules.parse([listed], "ignore", language).holds(tensor) is held


def test_no_list_keeps_nothing() -> None:
    assert not KeptModules.parse(None, "ignore", SHELL).holds("lm_head.weight")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("lm_head", "config.ignore must be a list of module names, not 'lm_head'"),
        ([1], r"config.ignore must be a list of module names, not \[1\]"),
        (["re:("], "config.ignore holds a pattern that is not valid"),
        (["re:(a+)+$"], "read are those of at most"),
        (["re:(a|a)*$"], "no group of them repeated"),
        (["re:.*.*.*.*.*x"], "read are those"),
        (["re:" + "a?" * 9], "read are those"),
        (["re:" + "(a|a)" * 9], "read are those"),
        (["re:" + "a" * 513], "read are those"),
        ([f"re:{i}" for i in range(4097)], "at most 262,144 and 4,096 are read"),
    ],
)
def test_what_cannot_be_matched_is_refused(values: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        KeptModules.parse(values, "config.ignore", COMPRESSED)


def test_a_shell_pattern_has_a_length() -> None:
    assert not KeptModules.parse(["*" + "x" * 511], "config.ignore", SHELL).holds("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"config.ignore holds .*; at most 512 are read"):
        KeptModules.parse(["*" + "x" * 512], "config.ignore", SHELL)


def test_the_worst_expressions_that_are_read_end_soon() -> None:
    name = "model.language_model.layers." + "0" * 60
    start = time.monotonic()
    assert not KeptModules.parse(["re:.*0*0*0*x"], "ignore", COMPRESSED).holds(f"{name}.weight")
    assert not KeptModules.parse(["*0" * 200 + "x"], "ignore", SHELL).holds(f"{name}.weight")
    assert time.monotonic() - start < 10
