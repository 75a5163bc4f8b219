"""The weights are numbers that anyone can make again: checked against PCG64 written out in integers."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from musespark.conformance.recipes import all_recipes
from musespark.conformance.seeded import bell, integers, make_picture, make_weights, raw
from musespark.model.config import ModelConfig

WORD, LONG = 0xFFFF_FFFF, (1 << 128) - 1
DOCS = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")


def seed_sequence(entropy: list[int], num_words: int) -> list[int]:
    """`num_words` 32-bit words: numpy's SeedSequence of a few 32-bit integers, after O'Neill's seed_seq_fe."""
    constant = 0x43B0D7E5

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & WORD
        value = value * constant & WORD
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        value = (0xCA01F9DD * x - 0x4973F715 * y) & WORD
        return value ^ value >> 16

    pool = [hashed(entropy[i] if i < len(entropy) else 0) for i in range(4)]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    constant, words = 0x8B51F9DD, []
    for i in range(num_words):
        value = pool[i % 4] ^ constant
        constant = constant * 0x58F38DED & WORD
        value = value * constant & WORD
        words.append(value ^ value >> 16)
    return words


def pcg64(entropy: list[int], count: int) -> list[int]:
    """The first numbers of PCG64 (XSL-RR 128/64)."""
    words = seed_sequence(entropy, 8)
    a, b, c, d = (words[2 * i] | words[2 * i + 1] << 32 for i in range(4))
    increment = (c << 64 | d) << 1 & LONG | 1

    def step(state: int) -> int:
        return (state * 0x2360ED051FC65DA44385DF649FCCF645 + increment) & LONG

    state, numbers = step((step(0) + (a << 64 | b)) & LONG), []
    for _ in range(count):
        state = step(state)
        value, turn = (state >> 64 ^ state) & 0xFFFF_FFFF_FFFF_FFFF, state >> 122
        numbers.append((value >> turn | value << (64 - turn)) & 0xFFFF_FFFF_FFFF_FFFF)
    return numbers


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("name", ["lm_head.weight", "", "ä"])
def test_raw_numbers_are_those_of_pcg64_seeded_with_the_seed_and_the_crc_of_the_name(seed: int, name: str) -> None:
    assert raw(seed, name, 5).tolist() == pcg64([seed, zlib.crc32(name.encode())], 5)


def test_a_value_is_the_sum_of_four_sixteenths_of_a_raw_number_made_even() -> None:
    (number,) = pcg64([7, zlib.crc32(b"x")], 1)
    parts = [number >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    assert bell(7, "x", (1,)).tolist() == [(sum(parts) - 131_070) / ((2**32 - 1) / 3) ** 0.5]
    many = bell(7, "y", (100, 1000))
    assert abs(many.mean()) < 0.01
    assert abs(many.std() - 1) < 0.01


def test_the_documentation_shows_the_first_weights_of_seed_0() -> None:
    recipe = next(recipe for recipe in all_recipes() if recipe.name == "muse_spark.attention")
    weights = make_weights(ModelConfig.from_dict(recipe.config), 0)
    rows = re.findall(r"^\| `([a-z_.0-9]+)` \| ([-0-9., ]+) \| `([0-9a-f]{16})` \|$", DOCS, flags=re.MULTILINE)
    assert len(rows) >= 3
    for name, values, digest in rows:
        flat = weights[name].reshape(-1)
        assert [float(v) for v in values.split(", ")] == [float(f"{v:.9g}") for v in flat[:3]]
        assert hashlib.sha256(weights[name].tobytes()).hexdigest().startswith(digest)


def test_every_tensor_has_numbers_of_its_own_and_another_seed_has_others() -> None:
    config = ModelConfig.from_dict(all_recipes()[0].config)
    weights, others = make_weights(config, 0), make_weights(config, 1)
    first = {name: tensor.reshape(-1)[:4].tobytes() for name, tensor in weights.items()}
    assert len(set(first.values())) == len(first)
    assert not any(np.array_equal(weights[name], others[name]) for name in weights)
    assert {tensor.dtype for tensor in weights.values()} == {np.dtype(np.float32)}


def test_drawn_integers_stay_in_their_range_and_pictures_have_the_asked_size() -> None:
    drawn = integers(0, "x", 32, 288, 2000)
    assert (min(drawn), max(drawn)) == (32, 287)
    assert make_picture(0, "p", 7, 5).shape == (5, 7, 3)
    assert make_picture(0, "p", 7, 5, alpha=True).shape == (5, 7, 4)
