"""The suite finds what it says: a right network passes, and each mistake fails the cases that guard against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from musespark.conformance import logit_cases
from musespark.conformance.check import check
from musespark.conformance.compare import Result
from musespark.conformance.engines import ReferenceEngine
from musespark.conformance.logit_cases import build, make_case
from musespark.conformance.mistakes import Mistake, all_mistakes
from musespark.conformance.recipes import LogitCase, all_recipes
from musespark.conformance.suite import Suite
from musespark.errors import DataError

RECIPES = all_recipes()


def guarded() -> Iterator[tuple[str, str, list[str]]]:
    """(family, mistake, the cases that guard against it)."""
    for family, mistakes in all_mistakes().items():
        for name in mistakes:
            cases = [
                f"{recipe.name}.{case.name}"
                for recipe in RECIPES
                for case in recipe.cases
                if recipe.family == family and name in case.mistakes
            ]
            yield family, name, cases


def result_of(suite: Suite, mistake: Mistake, case: str) -> Result:
    """What an engine with this mistake makes of a case."""
    return next(result for result in check(suite, ReferenceEngine(mistake.make), only=case) if result.case.id == case)


def test_the_reference_passes_every_case(suite: Suite) -> None:
    """Prompts, answers and token counts were written by hand, so this holds our chat room to them."""
    assert [(r.case.id, r.note) for r in check(suite, ReferenceEngine()) if r.status != "pass"] == []


@pytest.mark.parametrize(("family", "mistake", "cases"), [pytest.param(*g, id=f"{g[0]}-{g[1]}") for g in guarded()])
def test_a_mistake_fails_every_case_that_guards_against_it(
    suite: Suite, family: str, mistake: str, cases: list[str]
) -> None:
    assert cases, "a mistake that no case guards against"
    known = all_mistakes()[family][mistake]  # type: ignore[index]
    for case in cases:
        result = result_of(suite, known, case)
        assert result.status == "fail", case
        assert known.says in [guard.mistake for guard in result.case.guards]


@pytest.mark.parametrize(
    ("mistake", "family", "passing"),
    [
        ("window-one-too-long", "muse_spark", ["muse_spark.experts.experts", "muse_spark.stream.head"]),
        ("correction-bias-ignored", "muse_spark", ["muse_spark.attention.window", "muse_spark.attention.layers"]),
        ("tanh-gelu", "muse_glimmer", ["muse_glimmer.text.layers", "muse_glimmer.pages.pages"]),
        ("qk-norm-forced", "llama4", ["llama4.scout.layers"]),
        ("global-tile-first", "llama4", ["llama4.vision.tile"]),
        ("no-temperature", "llama4", ["llama4.vision.tile"]),
    ],
)
def test_a_mistake_leaves_cases_alone_that_do_not_reach_it(
    suite: Suite, mistake: str, family: str, passing: list[str]
) -> None:
    known = all_mistakes()[family][mistake]  # type: ignore[index]
    for case in passing:
        result = result_of(suite, known, case)
        assert result.status == "pass", case


def test_a_prompt_on_which_rounding_shows_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused when nothing may move is the noise: one prompt of this network is as bad as the other then."""
    monkeypatch.setattr(logit_cases, "MAX_ATTEMPTS", 3)
    monkeypatch.setattr(logit_cases, "LARGEST_NOISE", 0.0)
    with pytest.raises(DataError, match="rounding shows"):
        make_case(RECIPES[0], RECIPES[0].cases[0], 0, build(RECIPES[0], 0)[2])


def test_a_case_that_lets_its_mistake_pass_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token has no window to get wrong."""
    monkeypatch.setattr(logit_cases, "MAX_ATTEMPTS", 3)
    blind = LogitCase("blind", "one token", (1,), ("window-one-too-long",))
    with pytest.raises(DataError, match="window-one-too-long does not show"):
        make_case(RECIPES[0], blind, 0, build(RECIPES[0], 0)[2])
